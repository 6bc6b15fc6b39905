"""Training: one loop over two tasks, classifier and GAN, on Lightning Fabric."""
