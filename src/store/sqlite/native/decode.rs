//! A row as a struct, by the names of its columns.

use serde::de::value::{BorrowedStrDeserializer, MapDeserializer};
use serde::de::{Error as _, IntoDeserializer, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};
use serde_json::Error;
use sqlx::sqlite::{SqliteRow, SqliteValueRef};
use sqlx::{Column, Decode, Row, Sqlite, TypeInfo, ValueRef};

pub fn row<'a, T: Deserialize<'a>>(row: &'a SqliteRow) -> Result<T, Error> {
    let columns = row.columns().iter().map(|column| {
        // The place is the column's own.
        (column.name(), Cell(row.try_get_raw(column.ordinal()).ok()))
    });
    T::deserialize(MapDeserializer::new(columns))
}

/// One value; none where there is no such column.
struct Cell<'a>(Option<SqliteValueRef<'a>>);

impl<'a> Cell<'a> {
    /// The value, unless it is NULL.
    fn value(self) -> Option<SqliteValueRef<'a>> {
        self.0.filter(|value| !value.is_null())
    }
}

fn text(value: SqliteValueRef<'_>) -> Result<&str, Error> {
    <&str as Decode<'_, Sqlite>>::decode(value).map_err(Error::custom)
}

impl<'a> IntoDeserializer<'a, Error> for Cell<'a> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Cell<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Some(value) = self.value() else { return visitor.visit_unit() };
        if value.type_info().name() == "INTEGER" {
            let number = <i64 as Decode<'_, Sqlite>>::decode(value).map_err(Error::custom)?;
            return visitor.visit_i64(number);
        }
        visitor.visit_borrowed_str(text(value)?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value() {
            Some(value) => visitor.visit_some(Self(Some(value))),
            None => visitor.visit_none(),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Some(value) = self.value() else { return Err(Error::custom("a kind is missing")) };
        visitor.visit_enum(BorrowedStrDeserializer::new(text(value)?))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}
