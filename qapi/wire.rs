//! Values on the wire and the generated types: the conversions, and the macros that the generated code uses.
//!
//! Input is checked by [`crate::visit`] against the schema first; the conversions here then only move values. A server
//! decodes with [`crate::visit::from_json`], which has QEMU's error texts; a client can use `serde`.

use crate::schema::{CommandDef, EventDef, TYPES, TypeId};
use crate::visit::{self, Source};
use lockstep_util::{Error, Result};
use serde_json::Value;

/// A JSON object, in order of insertion.
pub type Map = serde_json::Map<String, Value>;

/// A type that has a place in the schema.
pub trait Wire: Sized {
    /// Where the schema's table describes it.
    const TYPE: TypeId;
    /// Moves a value that the visitor has accepted into the type. Members that the type lacks are ignored. Fails (with a
    /// plain text, not QEMU's) if the value does not have the type's shape.
    fn from_wire(value: Value) -> Result<Self>;
    /// The value on the wire.
    fn to_wire(&self) -> Value;
    /// Checks a value that is to become one of these.
    fn check(value: Value, source: Source) -> Result<Value> {
        visit::check(Self::TYPE, value, source)
    }
}

/// An enumeration of the schema.
pub trait Enum: Wire + Copy + 'static {
    /// The name on the wire.
    fn name(self) -> &'static str;
}

/// A structure or union, whose members are an object's.
pub trait Members: Sized {
    /// Takes its members out of `m`.
    fn get(m: &mut Map) -> Result<Self>;
    /// Puts its members into `m`, in the schema's order.
    fn put(&self, m: &mut Map);
}

impl<T: Members> Members for Box<T> {
    fn get(m: &mut Map) -> Result<Self> {
        T::get(m).map(Box::new)
    }
    fn put(&self, m: &mut Map) {
        (**self).put(m);
    }
}

/// The arguments of a command, or the data of an event.
pub trait Arguments: Sized {
    /// From checked members.
    fn from_members(m: Map) -> Result<Self>;
    /// To members.
    fn to_members(&self) -> Map;
}

impl<T: Members> Arguments for T {
    fn from_members(mut m: Map) -> Result<Self> {
        T::get(&mut m)
    }
    fn to_members(&self) -> Map {
        let mut m = Map::new();
        self.put(&mut m);
        m
    }
}

/// For commands whose arguments the schema does not describe in full (`'gen': false`).
impl Arguments for Map {
    fn from_members(m: Map) -> Result<Self> {
        Ok(m)
    }
    fn to_members(&self) -> Map {
        self.clone()
    }
}

/// No arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoArgs;

impl Members for NoArgs {
    fn get(_: &mut Map) -> Result<Self> {
        Ok(Self)
    }
    fn put(&self, _: &mut Map) {}
}

/// What a command returns.
pub trait Reply: Sized {
    /// The value of `return`.
    fn into_value(self) -> Value;
    /// From the value of `return`, for clients.
    fn from_value(value: Value) -> Result<Self>;
}

impl Reply for () {
    fn into_value(self) -> Value {
        Value::Object(Map::new())
    }
    fn from_value(_: Value) -> Result<Self> {
        Ok(())
    }
}

impl<T: Wire> Reply for T {
    fn into_value(self) -> Value {
        self.to_wire()
    }
    fn from_value(value: Value) -> Result<Self> {
        T::from_wire(value)
    }
}

/// A command of the schema; implemented by the types of [`crate::cmd`].
pub trait Command {
    /// Its entry in the schema's table.
    const DEF: &'static CommandDef;
    /// Its arguments.
    type Args: Arguments;
    /// What it returns.
    type Ret: Reply;
}

/// An event of the schema; implemented by the types of [`crate::event`].
pub trait EventType {
    /// Its entry in the schema's table.
    const DEF: &'static EventDef;
    /// What it carries.
    type Data: Arguments;
}

/// JSON's `null`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Null;

/// A member of a structure: absent, or a value.
pub trait Field: Sized {
    /// From the member's value, `None` if the member is absent.
    fn from_field(value: Option<Value>, name: &str) -> Result<Self>;
    /// The member's value, `None` to leave the member out.
    fn to_field(&self) -> Option<Value>;
}

impl<T: Wire> Field for T {
    fn from_field(value: Option<Value>, name: &str) -> Result<Self> {
        match value {
            Some(v) => T::from_wire(v),
            None => Err(Error::new(format!("Parameter '{name}' is missing"))),
        }
    }
    fn to_field(&self) -> Option<Value> {
        Some(self.to_wire())
    }
}

impl<T: Wire> Field for Option<T> {
    fn from_field(value: Option<Value>, _: &str) -> Result<Self> {
        value.map(T::from_wire).transpose()
    }
    fn to_field(&self) -> Option<Value> {
        self.as_ref().map(Wire::to_wire)
    }
}

/// Takes a member out of an object.
pub(crate) fn get<T: Field>(m: &mut Map, name: &str) -> Result<T> {
    T::from_field(m.get_mut(name).map(Value::take), name)
}

/// Puts a member into an object, unless it is absent.
pub(crate) fn put<T: Field>(m: &mut Map, name: &str, value: &T) {
    if let Some(v) = value.to_field() {
        m.insert(name.to_owned(), v);
    }
}

/// The error of a value without the shape of its type.
pub(crate) fn mismatch(ty: TypeId) -> Error {
    Error::new(format!("value does not have the type {}", TYPES[usize::from(ty.0)].name))
}

/// The conversion behind every object.
pub(crate) fn take_object<T: Members>(value: Value, ty: TypeId) -> Result<T> {
    match value {
        Value::Object(mut m) => T::get(&mut m),
        _ => Err(mismatch(ty)),
    }
}

/// The conversion behind every object.
pub(crate) fn give_object<T: Members>(object: &T) -> Value {
    let mut m = Map::new();
    object.put(&mut m);
    Value::Object(m)
}

macro_rules! scalar {
    ($($ty:ty, $id:expr, $pattern:pat => $take:expr, $self:ident => $give:expr;)*) => { $(
        impl Wire for $ty {
            const TYPE: TypeId = TypeId($id);
            fn from_wire(value: Value) -> Result<Self> {
                #[allow(irrefutable_let_patterns)]
                if let $pattern = value && let Some(v) = $take { Ok(v) } else { Err(mismatch(Self::TYPE)) }
            }
            fn to_wire(&self) -> Value {
                let $self = self;
                $give
            }
        }
    )* };
}

// The numbers are those of the generator's list of built-in types.
scalar! {
    String, 0, Value::String(s) => Some(s), s => Value::String(s.clone());
    i64, 1, Value::Number(n) => n.as_i64(), n => (*n).into();
    i8, 2, Value::Number(n) => n.as_i64().and_then(|n| n.try_into().ok()), n => (*n).into();
    i16, 3, Value::Number(n) => n.as_i64().and_then(|n| n.try_into().ok()), n => (*n).into();
    i32, 4, Value::Number(n) => n.as_i64().and_then(|n| n.try_into().ok()), n => (*n).into();
    u8, 6, Value::Number(n) => n.as_u64().and_then(|n| n.try_into().ok()), n => (*n).into();
    u16, 7, Value::Number(n) => n.as_u64().and_then(|n| n.try_into().ok()), n => (*n).into();
    u32, 8, Value::Number(n) => n.as_u64().and_then(|n| n.try_into().ok()), n => (*n).into();
    u64, 9, Value::Number(n) => n.as_u64(), n => (*n).into();
    f64, 11, Value::Number(n) => n.as_f64(), n => (*n).into();
    bool, 12, Value::Bool(b) => Some(b), b => Value::Bool(*b);
    Null, 13, Value::Null => Some(Null), _n => Value::Null;
    Value, 14, v => Some(v), v => v.clone();
}

/// Its `TYPE` is that of the elements: the tables have no array of every type.
impl<T: Wire> Wire for Vec<T> {
    const TYPE: TypeId = T::TYPE;
    fn from_wire(value: Value) -> Result<Self> {
        match value {
            Value::Array(items) => items.into_iter().map(T::from_wire).collect(),
            _ => Err(mismatch(Self::TYPE)),
        }
    }
    fn to_wire(&self) -> Value {
        Value::Array(self.iter().map(Wire::to_wire).collect())
    }
    fn check(value: Value, source: Source) -> Result<Value> {
        visit::check_list(T::TYPE, value, source)
    }
}

impl<T: Wire> Wire for Box<T> {
    const TYPE: TypeId = T::TYPE;
    fn from_wire(value: Value) -> Result<Self> {
        T::from_wire(value).map(Box::new)
    }
    fn to_wire(&self) -> Value {
        (**self).to_wire()
    }
}

/// `serde` for a generated type, by way of its value.
macro_rules! qapi_serde {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
                self.to_wire().serialize(s)
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
                Self::from_wire(Value::deserialize(d)?).map_err(serde::de::Error::custom)
            }
        }
    };
}

/// `Wire` for a structure or union.
macro_rules! qapi_object {
    ($name:ident, $id:expr) => {
        impl Wire for $name {
            const TYPE: TypeId = TypeId($id);
            fn from_wire(value: Value) -> Result<Self> {
                take_object(value, Self::TYPE)
            }
            fn to_wire(&self) -> Value {
                give_object(self)
            }
        }
        qapi_serde! { $name }
    };
}

/// An enumeration.
macro_rules! qapi_enum {
    ($(#[$doc:meta])* $name:ident, $id:expr; $($variant:ident = $text:expr),*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($variant),* }
        impl $name {
            /// All values, in the schema's order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            const NAMES: &'static [&'static str] = &[$($text),*];
            /// The name on the wire.
            pub fn as_str(self) -> &'static str {
                Self::NAMES[self as usize]
            }
            /// The value of that name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::NAMES.iter().position(|n| *n == name).map(|i| Self::ALL[i])
            }
        }
        impl Enum for $name {
            fn name(self) -> &'static str {
                self.as_str()
            }
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl std::str::FromStr for $name {
            type Err = lockstep_util::Error;
            fn from_str(name: &str) -> Result<Self> {
                Self::from_name(name).ok_or_else(|| mismatch(Self::TYPE))
            }
        }
        impl Wire for $name {
            const TYPE: TypeId = TypeId($id);
            fn from_wire(value: Value) -> Result<Self> {
                value.as_str().and_then(Self::from_name).ok_or_else(|| mismatch(Self::TYPE))
            }
            fn to_wire(&self) -> Value {
                Value::String(self.as_str().to_owned())
            }
        }
        qapi_serde! { $name }
    };
}
