"""How fast a model runs on the machine at hand, and how fast it could at best."""
