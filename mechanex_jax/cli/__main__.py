from mechanex_jax.cli import app

app()
