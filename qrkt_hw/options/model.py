"""Options of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from qrkt_hw.errors import UserError

Projection = Literal["quantum", "classical", "quantum-attention", "quantum-mlp"]
Rule = Literal["rk1", "rk2", "rk3", "rk4", "rk4-enhanced"]


class ModelOptions(BaseModel):
    """The shape of the transformer and of its circuits."""

    model_config = ConfigDict(extra="forbid")

    model: Literal["vit", "text", "gan"] = Field(
        "vit", description="kind of model; text for a text data set, gan to generate images"
    )
    projection: Projection = Field("quantum", description="where circuits stand: everywhere, nowhere, or one of both")
    ansatz: str = Field("ry_rz_ring", description="circuit template: a name, or path/to/file.py:function")
    qubits: int = Field(4, ge=1, le=28, description="qubits per group of features")
    layers: int = Field(1, ge=1, le=64, description="layers of the ansatz")
    hidden: int = Field(32, ge=1, le=16_384, description="width of the tokens")
    heads: int = Field(4, ge=1, le=1024, description="attention heads")
    mlp: int = Field(16, ge=1, le=16_384, description="width of the MLP's hidden layer")
    mlp_qubits: int | None = Field(
        None, ge=1, le=28, description="qubits per group in the MLP [default: min(qubits, mlp)]"
    )
    patch: int = Field(4, ge=1, description="pixels along a side of a patch")
    encoder_blocks: int = Field(0, ge=0, le=256, description="ordinary encoder blocks in front")
    rk_blocks: int = Field(3, ge=0, le=256, description="Runge-Kutta blocks")
    rk: Rule = Field("rk2", description="Runge-Kutta rule")
    share_stages: bool = Field(True, description="all stages of a Runge-Kutta block use the same weights")
    field_norms: Literal[0, 1, 2] = Field(
        1,
        description="LayerNorms of a Runge-Kutta block: none, one before F, or one each before attention and MLP",
    )
    decoder_blocks: int = Field(
        0, ge=0, le=256, description="decoder blocks behind, on a second embedding of the input"
    )
    cross_attention: Literal["full", "output"] = Field(
        "full", description="projections of the decoder's cross-attention: all four, or the output's only"
    )
    positions: Literal["learned", "axial", "sincos", "none"] = Field(
        "learned", description="position embedding; axial: learned, a row's and a column's added"
    )
    pool: Literal["mean", "class", "weighted"] = Field(
        "mean",
        description="what the head reads: the mean of the tokens, a class token, or sums with a learned weight for "
        "each position and feature",
    )
    final_norm: bool = Field(
        True, description="LayerNorm of the tokens before the pool; without it, words that matter may be large"
    )
    embedding_scale: float = Field(
        1.0, gt=0, description="text: deviation of the embeddings before training; seldom words keep much of it"
    )
    token_dropout: float = Field(0.0, ge=0, lt=1, description="text: share of words that a training step leaves out")
    pool_maps: int = Field(1, ge=1, le=1024, description="sums that --pool weighted makes")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout")
    initial_angles: Literal["uniform", "conditioned"] = Field(
        "uniform",
        description="angles before training: drawn from [-pi, pi], or from there to where circuits pass a signal best",
    )
    input_scale: bool = Field(False, description="a learned factor per feature in front of each circuit")
    output_scale: bool = Field(True, description="a learned factor per feature behind each circuit")
    output_bias: bool = Field(False, description="a learned offset per feature behind each circuit")
    dtype: Literal["complex64", "complex128"] = Field("complex64", description="precision of the simulator")

    # gives the source of circuits; None for the registry
    _circuits: Callable[[], Any] | None = PrivateAttr(default=None)

    @property
    def circuits(self) -> Any:
        """What gives the template for an ansatz, qubits and layers: those a run keeps; None for the registry."""
        return None if self._circuits is None else self._circuits()

    def with_circuits(self, circuits: Callable[[], Any]) -> Self:
        """The same options, whose circuits come from there, as do those of its copies."""
        copy = self.model_copy()
        copy._circuits = circuits
        return copy

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__  # wherever the circuits come from

    @property
    def quantum_attention(self) -> bool:
        return self.projection in ("quantum", "quantum-attention")

    @property
    def quantum_mlp(self) -> bool:
        return self.projection in ("quantum", "quantum-mlp")

    @property
    def circuit_mlp_qubits(self) -> int:
        """Qubits per group in the MLP, the default resolved."""
        return self.mlp_qubits or min(self.qubits, self.mlp)

    def check_sizes(self) -> None:
        """Make sure that the sizes of a transformer fit each other; they need no data for that.

        Raises:
            UserError: two that do not, by their flags.
        """
        if not self.final_norm and self.decoder_blocks:
            raise UserError("--no-final-norm: the decoder has a norm of its own; take --decoder-blocks 0")
        if self.pool_maps > 1 and self.pool != "weighted":
            raise UserError(f"--pool-maps: {self.pool_maps} sums need --pool weighted; --pool is {self.pool}")
        if self.hidden % self.heads:
            raise UserError(f"--heads: hidden size {self.hidden} is not divisible by {self.heads} heads")
        if self.quantum_attention and self.hidden % self.qubits:
            raise UserError(f"--qubits: hidden size {self.hidden} is not divisible by {self.qubits} qubits per group")
        if self.quantum_mlp and self.mlp % self.circuit_mlp_qubits:
            raise UserError(
                f"--mlp-qubits: MLP size {self.mlp} is not divisible by {self.circuit_mlp_qubits} qubits per group"
            )
