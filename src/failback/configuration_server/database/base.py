"""Declarative base, naming convention (so that Alembic can name every constraint) and the column types used everywhere."""

from __future__ import annotations

from typing import Annotated, Any

from sqlalchemy import JSON, BigInteger, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, mapped_column

NAMING = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

Id = Annotated[str, mapped_column(String(64))]
"""An identifier of :mod:`failback.model.ids`, or a name of that length."""
Name = Annotated[str, mapped_column(String(255))]
Sentence = Annotated[str, mapped_column(Text, default="")]
"""Text for people; empty when there is nothing to say."""
Count = Annotated[int, mapped_column(BigInteger, default=0)]
"""A byte count, an epoch, a sequence, a generation: 64 bits, 0 at first."""
WallNs = Annotated[int, mapped_column(BigInteger, default=0)]
"""Wall nanoseconds since 1970 UTC; 0 means not yet."""
Table = Annotated[dict[str, Any], mapped_column(JSON, default=dict)]
"""A free-form table. Replace it as a whole: changes inside it are not seen."""


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
