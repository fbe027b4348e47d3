//! A struct as the values of its columns.
//!
//! Invariant: members are numbers, flags, texts or nothing; a row with another shape fails its
//! first write.

use serde::ser::{Error as _, Impossible, SerializeMap, SerializeStruct};
use serde::{Serialize, Serializer};
use serde_json::Error;

/// What a column holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Null,
    Integer(i64),
    Text(String),
}

/// Adds the values of these columns; NULL where the struct has no such member.
///
/// # Errors
/// When a member is nothing that a column can hold, or the column of the `key` is NULL: no row
/// is without it, and SQLite's statements take one that is for what fills them up.
pub fn row<T: Serialize>(
    row: &T,
    columns: &[&str],
    key: usize,
    values: &mut Vec<Value>,
) -> Result<(), Error> {
    let start = values.len();
    values.resize(start + columns.len(), Value::Null);
    row.serialize(Shape::Row(Row { columns, values: &mut values[start..], next: 0, key: None }))?;
    match (columns.get(key), values.get(start + key)) {
        (Some(key), Some(Value::Null)) => Err(Error::custom(format!("a row without its {key}"))),
        _ => Ok(()),
    }
}

/// What a serializer is for: a whole row, or one value of it.
enum Shape<'a> {
    Row(Row<'a>),
    Cell,
}

struct Row<'a> {
    columns: &'a [&'a str],
    values: &'a mut [Value],
    /// Members mostly come in the order of the columns.
    next: usize,
    /// Of a flattened member, until its value comes.
    key: Option<usize>,
}

impl Row<'_> {
    fn place(&mut self, name: &str) -> Option<usize> {
        let is_next = self.columns.get(self.next).is_some_and(|column| *column == name);
        let place = if is_next {
            self.next
        } else {
            self.columns.iter().position(|column| *column == name)?
        };
        self.next = place + 1;
        Some(place)
    }

    fn put<T: Serialize + ?Sized>(&mut self, place: usize, value: &T) -> Result<(), Error> {
        self.values[place] = value.serialize(Shape::Cell)?;
        Ok(())
    }
}

impl SerializeStruct for Row<'_> {
    type Ok = Value;
    type Error = Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Error> {
        self.place(name).map_or(Ok(()), |place| self.put(place, value))
    }

    fn end(self) -> Result<Value, Error> {
        Ok(Value::Null)
    }
}

/// A struct with a flattened member comes as a map.
impl SerializeMap for Row<'_> {
    type Ok = Value;
    type Error = Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Error> {
        let Value::Text(name) = key.serialize(Shape::Cell)? else { return Err(unfit()) };
        self.key = self.place(&name);
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.key.take().map_or(Ok(()), |place| self.put(place, value))
    }

    fn end(self) -> Result<Value, Error> {
        Ok(Value::Null)
    }
}

fn unfit() -> Error {
    Error::custom("a row is made of numbers, flags and texts")
}

/// What no column holds.
macro_rules! unfit {
    ($($name:ident($($argument:ty),*) -> $out:ty),* $(,)?) => {
        $(fn $name(self, $(_: $argument),*) -> Result<$out, Error> { Err(unfit()) })*
    };
}

macro_rules! integers {
    ($($name:ident($number:ty)),* $(,)?) => {
        $(fn $name(self, number: $number) -> Result<Value, Error> {
            i64::try_from(number).map(Value::Integer).map_err(Error::custom)
        })*
    };
}

type Nothing = Impossible<Value, Error>;

impl<'a> Serializer for Shape<'a> {
    type Ok = Value;
    type Error = Error;
    type SerializeSeq = Nothing;
    type SerializeTuple = Nothing;
    type SerializeTupleStruct = Nothing;
    type SerializeTupleVariant = Nothing;
    type SerializeMap = Row<'a>;
    type SerializeStruct = Row<'a>;
    type SerializeStructVariant = Nothing;

    fn serialize_bool(self, flag: bool) -> Result<Value, Error> {
        Ok(Value::Integer(i64::from(flag)))
    }

    fn serialize_str(self, text: &str) -> Result<Value, Error> {
        Ok(Value::Text(text.to_owned()))
    }

    fn serialize_none(self) -> Result<Value, Error> {
        Ok(Value::Null)
    }

    fn serialize_unit(self) -> Result<Value, Error> {
        Ok(Value::Null)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Value, Error> {
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<Value, Error> {
        value.serialize(self)
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        name: &'static str,
    ) -> Result<Value, Error> {
        self.serialize_str(name)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: &T,
    ) -> Result<Value, Error> {
        Err(unfit())
    }

    fn serialize_struct(self, _: &'static str, members: usize) -> Result<Row<'a>, Error> {
        self.serialize_map(Some(members))
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Row<'a>, Error> {
        match self {
            Self::Row(row) => Ok(row),
            Self::Cell => Err(unfit()),
        }
    }

    integers! {
        serialize_i8(i8), serialize_i16(i16), serialize_i32(i32), serialize_i64(i64),
        serialize_u8(u8), serialize_u16(u16), serialize_u32(u32), serialize_u64(u64),
    }

    unfit! {
        serialize_f32(f32) -> Value, serialize_f64(f64) -> Value, serialize_char(char) -> Value,
        serialize_bytes(&[u8]) -> Value, serialize_unit_struct(&'static str) -> Value,
        serialize_seq(Option<usize>) -> Nothing, serialize_tuple(usize) -> Nothing,
        serialize_tuple_struct(&'static str, usize) -> Nothing,
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Nothing,
        serialize_struct_variant(&'static str, u32, &'static str, usize) -> Nothing,
    }
}
