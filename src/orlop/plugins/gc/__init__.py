"""When garbage is collected."""
