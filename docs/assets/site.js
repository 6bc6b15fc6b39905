// A table that is wider than its page takes the focus, so that the arrow keys scroll it.
function reachable() {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) {
    box.toggleAttribute("tabindex", false);
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
}
addEventListener("load", reachable);
addEventListener("resize", reachable);
