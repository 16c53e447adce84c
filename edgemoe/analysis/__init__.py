"""What routed experts do on a text, measured layer by layer, and stores that have fewer of them."""
