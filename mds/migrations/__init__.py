"""How databases of earlier schemas become databases of the present one (Alembic)."""
