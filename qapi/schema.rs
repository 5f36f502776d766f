//! The schema as tables, and the generated types.

#![allow(missing_docs)]

use crate::wire::*;
use lockstep_util::Result;
use serde_json::Value;

/// Index of a type in [`TYPES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(pub u16);

impl TypeId {
    /// The type's description.
    pub fn def(self) -> &'static TypeDef {
        &TYPES[usize::from(self.0)]
    }
}

/// A type of the schema.
#[derive(Debug)]
pub struct TypeDef {
    pub name: &'static str,
    pub kind: Kind,
    pub features: &'static [&'static str],
}

/// What a type consists of.
#[derive(Debug)]
pub enum Kind {
    Builtin(Builtin),
    Enum(&'static [EnumMember]),
    Array(TypeId),
    /// `tag` is the index in `members` of the member that selects the variant.
    Object {
        members: &'static [Member],
        tag: Option<usize>,
        variants: &'static [Variant],
    },
    Alternate(&'static [Variant]),
}

/// The types that the schema language brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Builtin {
    Str,
    Int,
    Int8,
    Int16,
    Int32,
    Int64,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Size,
    Number,
    Bool,
    Null,
    Any,
}

/// A value of an enumeration.
#[derive(Debug)]
pub struct EnumMember {
    pub name: &'static str,
    pub features: &'static [&'static str],
}

/// A member of a structure.
#[derive(Debug)]
pub struct Member {
    pub name: &'static str,
    pub ty: TypeId,
    pub optional: bool,
    pub features: &'static [&'static str],
}

/// A branch of a union (by tag value) or of an alternate (by name).
#[derive(Debug)]
pub struct Variant {
    pub case: &'static str,
    pub ty: TypeId,
}

/// A command.
#[derive(Debug)]
pub struct CommandDef {
    pub name: &'static str,
    pub arg: Option<TypeId>,
    pub ret: Option<TypeId>,
    /// False if the arguments are passed on as they are, beyond what `arg` says.
    pub typed: bool,
    /// May run out of band.
    pub oob: bool,
    /// May run before the machine is built.
    pub preconfig: bool,
    pub coroutine: bool,
    pub features: &'static [&'static str],
}

/// An event.
#[derive(Debug)]
pub struct EventDef {
    pub name: &'static str,
    pub arg: Option<TypeId>,
    pub features: &'static [&'static str],
}

/// The command of that name.
pub fn command(name: &str) -> Option<&'static CommandDef> {
    COMMANDS.iter().find(|c| c.name == name)
}

/// The event of that name.
pub fn event_by_name(name: &str) -> Option<&'static EventDef> {
    EVENTS.iter().find(|e| e.name == name)
}

include!(concat!(env!("OUT_DIR"), "/qapi.rs"));
