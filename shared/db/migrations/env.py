"""Alembic's entry: runs the migrations of `versions/` over the connection that `run` hands in."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], transaction_per_migration=True)
with context.begin_transaction():
    context.run_migrations()
