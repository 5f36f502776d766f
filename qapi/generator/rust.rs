//! Writes the model as Rust: the types, and the tables that the visitor and the introspection walk.
//!
//! Only data and thin conversions are generated; the checks of input are one table-driven visitor, so that compile time
//! grows slowly with the schema.

use super::model::{Kind, Member, Schema, TypeId};
use std::collections::BTreeSet;
use std::fmt::Write;

/// The whole generated file.
pub fn emit(schema: &Schema) -> String {
    let boxed = recursive(schema);
    let defaults = defaultable(schema, &boxed);
    let mut e = Emitter { schema, boxed, defaults, prefix: "", out: String::new() };
    e.types();
    e.module("cmd", "The commands: one argument structure each.");
    e.module("event", "The events: one structure of data each.");
    e.tables();
    e.round_trip();
    e.out
}

struct Emitter<'a> {
    schema: &'a Schema,
    /// Pairs (type, member type) where the member must be boxed, because the types contain each other.
    boxed: BTreeSet<(TypeId, TypeId)>,
    defaults: Vec<bool>,
    /// How the current module names the types: commands and types may have the same name.
    prefix: &'static str,
    out: String,
}

macro_rules! w {
    ($dst:expr, $($arg:tt)*) => { writeln!($dst, $($arg)*).expect("writing to a string") };
}

impl Emitter<'_> {
    fn name(&self, id: TypeId) -> &str {
        &self.schema.types[id].name
    }

    fn is_arg(&self, id: TypeId) -> bool {
        self.name(id).ends_with("-arg")
    }

    fn rust_type(&self, id: TypeId) -> String {
        match &self.schema.types[id].kind {
            Kind::Builtin => builtin(self.name(id)).to_owned(),
            Kind::Array(element) => format!("Vec<{}>", self.rust_type(*element)),
            _ => format!("{}{}", self.prefix, type_name(self.name(id))),
        }
    }

    fn field_type(&self, owner: TypeId, m: &Member) -> String {
        let mut ty = self.rust_type(m.ty);
        if self.boxed.contains(&(owner, m.ty)) {
            ty = format!("Box<{ty}>");
        }
        if m.optional { format!("Option<{ty}>") } else { ty }
    }

    fn doc(&mut self, doc: &str) {
        for line in doc.lines() {
            w!(self.out, "/// {line}");
        }
    }

    fn types(&mut self) {
        let schema = self.schema;
        for (id, t) in schema.types.iter().enumerate() {
            match &t.kind {
                Kind::Builtin | Kind::Array(_) => {}
                Kind::Enum(members) => {
                    let variants: Vec<_> =
                        members.iter().map(|m| format!("{} = {:?}", variant_name(&m.name), m.name)).collect();
                    w!(self.out, "qapi_enum! {{");
                    self.doc(&t.doc);
                    w!(self.out, "{}, {id}; {} }}", type_name(&t.name), variants.join(", "));
                }
                Kind::Object { .. } if self.is_arg(id) => {}
                Kind::Object { members, tag: None, .. } => {
                    self.doc(&t.doc);
                    self.object(id, &type_name(&t.name), members);
                }
                Kind::Object { members, tag: Some(tag), variants } => {
                    self.doc(&t.doc);
                    self.union(id, members, *tag, variants);
                }
                Kind::Alternate(branches) => {
                    self.doc(&t.doc);
                    self.alternate(id, branches);
                }
            }
        }
    }

    fn derives(&self, default: bool) -> &'static str {
        if default { "#[derive(Clone, Debug, Default, PartialEq)]" } else { "#[derive(Clone, Debug, PartialEq)]" }
    }

    fn object(&mut self, id: TypeId, name: &str, members: &[Member]) {
        let derives = self.derives(self.defaults[id]);
        w!(self.out, "{derives} pub struct {name} {{");
        self.fields(id, members, None);
        w!(self.out, "}}");
        let mut get = String::new();
        let mut put = String::new();
        for m in members {
            let f = field_name(&m.name);
            w!(get, "{f}: get(m, {:?})?,", m.name);
            w!(put, "put(m, {:?}, &self.{f});", m.name);
        }
        self.members_impl(name, &format!("Ok(Self {{ {get} }})"), &put, members.is_empty());
        w!(self.out, "qapi_object! {{ {name}, {id} }}");
    }

    fn fields(&mut self, id: TypeId, members: &[Member], skip: Option<usize>) {
        for (i, m) in members.iter().enumerate() {
            if Some(i) != skip {
                let ty = self.field_type(id, m);
                w!(self.out, "pub {}: {ty},", field_name(&m.name));
            }
        }
    }

    fn members_impl(&mut self, name: &str, get: &str, put: &str, empty: bool) {
        let m = if empty { "_" } else { "m" };
        w!(self.out, "impl Members for {name} {{");
        w!(self.out, "fn get({m}: &mut Map) -> Result<Self> {{ {get} }}");
        w!(self.out, "fn put(&self, {m}: &mut Map) {{ {put} }}");
        w!(self.out, "}}");
    }

    /// A union with nothing but its tag becomes an enum; one with more members a struct with the field `branch`.
    fn union(&mut self, id: TypeId, members: &[Member], tag: usize, variants: &[(String, TypeId)]) {
        let name = type_name(self.name(id));
        let plain = members.len() == 1;
        let branch = if plain { name.clone() } else { format!("{name}Branch") };
        let tag_name = &members[tag].name;
        let tag_type = type_name(self.name(members[tag].ty));
        let Kind::Enum(cases) = &self.schema.types[members[tag].ty].kind else { unreachable!("checked by the model") };
        let cases: Vec<_> = cases
            .iter()
            .map(|c| (c.name.clone(), variants.iter().find(|(case, _)| *case == c.name).map(|(_, ty)| *ty)))
            .collect();

        w!(self.out, "#[derive(Clone, Debug, PartialEq)] pub enum {branch} {{");
        for (case, ty) in &cases {
            match ty {
                Some(ty) if self.boxed.contains(&(id, *ty)) => {
                    w!(self.out, "{}(Box<{}>),", variant_name(case), type_name(self.name(*ty)));
                }
                Some(ty) => w!(self.out, "{}({}),", variant_name(case), type_name(self.name(*ty))),
                None => w!(self.out, "{},", variant_name(case)),
            }
        }
        w!(self.out, "}}");
        let (mut tags, mut get, mut put) = (String::new(), String::new(), String::new());
        for (case, ty) in &cases {
            let v = variant_name(case);
            let parts = if ty.is_some() { "(_)" } else { "" };
            w!(tags, "Self::{v}{parts} => {tag_type}::{v},");
            match ty {
                Some(_) => {
                    w!(get, "{tag_type}::{v} => {branch}::{v}(Members::get(m)?),");
                    w!(put, "{branch}::{v}(b) => b.put(m),");
                }
                None => {
                    w!(get, "{tag_type}::{v} => {branch}::{v},");
                    w!(put, "{branch}::{v} => {{}}");
                }
            }
        }
        w!(
            self.out,
            "impl {branch} {{ /** The value of `{tag_name}`. */ pub fn tag(&self) -> {tag_type} {{ match self {{ {tags} }} }} }}"
        );
        if plain {
            let get = format!("let tag: {tag_type} = get(m, {tag_name:?})?; Ok(match tag {{ {get} }})");
            let put = format!("put(m, {tag_name:?}, &self.tag()); match self {{ {put} }}");
            self.members_impl(&name, &get, &put, false);
        } else {
            w!(self.out, "#[derive(Clone, Debug, PartialEq)] pub struct {name} {{");
            self.fields(id, members, Some(tag));
            w!(self.out, "pub branch: {branch}, }}");
            let mut g = format!("let tag: {tag_type} = get(m, {tag_name:?})?; Ok(Self {{");
            let mut p = String::new();
            for (i, m) in members.iter().enumerate() {
                if i == tag {
                    w!(p, "put(m, {tag_name:?}, &self.branch.tag());");
                } else {
                    let f = field_name(&m.name);
                    w!(g, "{f}: get(m, {:?})?,", m.name);
                    w!(p, "put(m, {:?}, &self.{f});", m.name);
                }
            }
            w!(g, "branch: match tag {{ {get} }} }})");
            w!(p, "match &self.branch {{ {put} }}");
            self.members_impl(&name, &g, &p, false);
        }
        w!(self.out, "qapi_object! {{ {name}, {id} }}");
    }

    fn alternate(&mut self, id: TypeId, branches: &[(String, TypeId)]) {
        let name = type_name(self.name(id));
        w!(self.out, "#[derive(Clone, Debug, PartialEq)] pub enum {name} {{");
        for (case, ty) in branches {
            let inner = self.rust_type(*ty);
            match &self.schema.types[*ty].kind {
                Kind::Builtin if self.name(*ty) == "null" => w!(self.out, "{},", variant_name(case)),
                Kind::Object { .. } => w!(self.out, "{}(Box<{inner}>),", variant_name(case)),
                _ => w!(self.out, "{}({inner}),", variant_name(case)),
            }
        }
        w!(self.out, "}}");
        w!(self.out, "impl Wire for {name} {{ const TYPE: TypeId = TypeId({id});");
        w!(self.out, "fn from_wire(v: Value) -> Result<Self> {{ match v {{");
        for (case, ty) in branches {
            let v = variant_name(case);
            let pattern = match (&self.schema.types[*ty].kind, self.name(*ty)) {
                (Kind::Object { .. }, _) => "Value::Object(_)",
                (Kind::Array(_), _) => "Value::Array(_)",
                (_, "bool") => "Value::Bool(_)",
                (_, "null") => "Value::Null",
                (Kind::Enum(_), _) | (_, "str") => "Value::String(_)",
                _ => "Value::Number(_)",
            };
            if pattern == "Value::Null" {
                w!(self.out, "{pattern} => Ok(Self::{v}),");
            } else {
                w!(self.out, "{pattern} => Ok(Self::{v}(Wire::from_wire(v)?)),");
            }
        }
        w!(self.out, "_ => Err(mismatch(Self::TYPE)) }} }}");
        w!(self.out, "fn to_wire(&self) -> Value {{ match self {{");
        for (case, ty) in branches {
            let v = variant_name(case);
            if self.name(*ty) == "null" {
                w!(self.out, "Self::{v} => Value::Null,");
            } else {
                w!(self.out, "Self::{v}(x) => x.to_wire(),");
            }
        }
        w!(self.out, "}} }} }} qapi_serde! {{ {name} }}");
    }

    fn module(&mut self, module: &str, doc: &str) {
        let schema = self.schema;
        self.prefix = "super::";
        w!(self.out, "#[doc = {doc:?}] pub mod {module} {{ use super::*;");
        if module == "cmd" {
            for (i, c) in schema.commands.iter().enumerate() {
                let ret = c.ret.map_or("()".to_owned(), |r| self.rust_type(r));
                let name = camel(&c.name);
                self.doc(&c.doc);
                let args = self.message(&name, c.arg, c.boxed, c.typed);
                let ret = if c.typed { ret } else { "Value".to_owned() };
                w!(
                    self.out,
                    "impl Command for {name} {{ const DEF: &'static CommandDef = &COMMANDS[{i}]; type Args = {args}; type Ret = {ret}; }}"
                );
            }
        } else {
            for (i, e) in schema.events.iter().enumerate() {
                let name = camel(&e.name.to_lowercase());
                self.doc(&e.doc);
                let data = self.message(&name, e.arg, e.boxed, true);
                w!(
                    self.out,
                    "impl EventType for {name} {{ const DEF: &'static EventDef = &EVENTS[{i}]; type Data = {data}; }}"
                );
            }
        }
        w!(self.out, "}}");
    }

    /// The structure of a command or event; returns the type of its arguments.
    fn message(&mut self, name: &str, arg: Option<TypeId>, boxed: bool, typed: bool) -> String {
        match arg {
            Some(id) if !boxed && typed => {
                let Kind::Object { members, .. } = &self.schema.types[id].kind else { unreachable!("built so") };
                self.object(id, name, members);
                "Self".to_owned()
            }
            _ => {
                w!(self.out, "#[derive(Clone, Copy, Debug, Default, PartialEq)] pub struct {name};");
                match arg {
                    _ if !typed => "Map".to_owned(),
                    Some(id) => self.rust_type(id),
                    None => "NoArgs".to_owned(),
                }
            }
        }
    }

    /// For tests: every type by its number.
    fn round_trip(&mut self) {
        self.prefix = "";
        w!(
            self.out,
            "#[cfg(test)] pub fn round_trip(ty: TypeId, v: Value) -> Option<Result<Value>> {{ Some(match ty.0 {{"
        );
        for id in 0..self.schema.types.len() {
            if !self.is_arg(id) && !matches!(self.schema.types[id].kind, Kind::Array(_)) {
                w!(self.out, "{id} => <{}>::from_wire(v).map(|x| x.to_wire()),", self.rust_type(id));
            }
        }
        w!(self.out, "_ => return None, }}) }}");
    }

    fn tables(&mut self) {
        let schema = self.schema;
        w!(self.out, "/// Every type of the schema, indexed by [`TypeId`].");
        w!(self.out, "pub static TYPES: [TypeDef; {}] = [", schema.types.len());
        for t in &schema.types {
            let kind = match &t.kind {
                Kind::Builtin => format!("Kind::Builtin(Builtin::{})", camel(&t.name)),
                Kind::Array(element) => format!("Kind::Array(TypeId({element}))"),
                Kind::Enum(members) => {
                    let list: String = members
                        .iter()
                        .map(|m| format!("EnumMember {{ name: {:?}, features: &{:?} }},", m.name, m.features))
                        .collect();
                    format!("Kind::Enum(&[{list}])")
                }
                Kind::Object { members, tag, variants } => {
                    let list: String = members
                        .iter()
                        .map(|m| {
                            format!(
                                "Member {{ name: {:?}, ty: TypeId({}), optional: {}, features: &{:?} }},",
                                m.name, m.ty, m.optional, m.features
                            )
                        })
                        .collect();
                    format!("Kind::Object {{ members: &[{list}], tag: {tag:?}, variants: &[{}] }}", pairs(variants))
                }
                Kind::Alternate(branches) => format!("Kind::Alternate(&[{}])", pairs(branches)),
            };
            w!(self.out, "TypeDef {{ name: {:?}, kind: {kind}, features: &{:?} }},", t.name, t.features);
        }
        w!(self.out, "];");
        w!(self.out, "/// Every command of the schema.");
        w!(self.out, "pub static COMMANDS: [CommandDef; {}] = [", schema.commands.len());
        for c in &schema.commands {
            w!(
                self.out,
                "CommandDef {{ name: {:?}, arg: {}, ret: {}, typed: {}, oob: {}, preconfig: {}, coroutine: {}, features: &{:?} }},",
                c.name,
                type_id(c.arg),
                type_id(c.ret),
                c.typed,
                c.oob,
                c.preconfig,
                c.coroutine,
                c.features
            );
        }
        w!(self.out, "];");
        w!(self.out, "/// Every event of the schema.");
        w!(self.out, "pub static EVENTS: [EventDef; {}] = [", schema.events.len());
        for e in &schema.events {
            w!(self.out, "EventDef {{ name: {:?}, arg: {}, features: &{:?} }},", e.name, type_id(e.arg), e.features);
        }
        w!(self.out, "];");
    }
}

fn pairs(list: &[(String, TypeId)]) -> String {
    list.iter().map(|(case, ty)| format!("Variant {{ case: {case:?}, ty: TypeId({ty}) }},")).collect()
}

fn type_id(id: Option<TypeId>) -> String {
    id.map_or("None".to_owned(), |id| format!("Some(TypeId({id}))"))
}

fn builtin(name: &str) -> &'static str {
    match name {
        "str" => "String",
        "int" | "int64" => "i64",
        "int8" => "i8",
        "int16" => "i16",
        "int32" => "i32",
        "uint8" => "u8",
        "uint16" => "u16",
        "uint32" => "u32",
        "uint64" | "size" => "u64",
        "number" => "f64",
        "bool" => "bool",
        "null" => "Null",
        _ => "Value",
    }
}

/// Types that a value of type `id` holds in place (not behind a `Vec`), by member.
fn held(schema: &Schema, id: TypeId) -> Vec<TypeId> {
    match &schema.types[id].kind {
        Kind::Object { members, variants, .. } => {
            members.iter().map(|m| m.ty).chain(variants.iter().map(|(_, ty)| *ty)).collect()
        }
        // The objects of an alternate are always boxed.
        _ => Vec::new(),
    }
}

/// Finds the members that must be boxed: those through which a type would contain itself.
fn recursive(schema: &Schema) -> BTreeSet<(TypeId, TypeId)> {
    let mut boxed = BTreeSet::new();
    for id in 0..schema.types.len() {
        for inner in held(schema, id) {
            let mut seen = BTreeSet::new();
            let mut todo = vec![inner];
            while let Some(t) = todo.pop() {
                if seen.insert(t) {
                    todo.extend(held(schema, t));
                }
            }
            if seen.contains(&id) {
                boxed.insert((id, inner));
            }
        }
    }
    boxed
}

/// Which types can derive `Default`: structures without a required enum, union or alternate.
fn defaultable(schema: &Schema, boxed: &BTreeSet<(TypeId, TypeId)>) -> Vec<bool> {
    let mut able: Vec<bool> = schema
        .types
        .iter()
        .map(|t| matches!(t.kind, Kind::Builtin | Kind::Array(_) | Kind::Object { tag: None, .. }))
        .collect();
    loop {
        let mut changed = false;
        for (id, t) in schema.types.iter().enumerate() {
            let Kind::Object { members, .. } = &t.kind else { continue };
            if able[id] && members.iter().any(|m| !m.optional && (!able[m.ty] || boxed.contains(&(id, m.ty)))) {
                able[id] = false;
                changed = true;
            }
        }
        if !changed {
            return able;
        }
    }
}

/// The Rust name of a type: most are camel case already.
fn type_name(name: &str) -> String {
    const TAKEN: &[&str] = &["Box", "Map", "Null", "Option", "Result", "String", "Value", "Vec"];
    if TAKEN.contains(&name) {
        return format!("Qapi{name}");
    }
    if name.contains(['-', '_']) { camel(name) } else { name.to_owned() }
}

fn camel(name: &str) -> String {
    let mut out = String::new();
    for word in name.split(['-', '_', '.']) {
        let mut chars = word.chars();
        if let Some(first) = chars.next() {
            out.extend(first.to_uppercase());
            out.push_str(chars.as_str());
        }
    }
    out
}

fn variant_name(name: &str) -> String {
    let name = camel(name);
    match name.as_str() {
        "Self" => "Self_".to_owned(),
        n if n.starts_with(|c: char| c.is_ascii_digit()) => format!("_{n}"),
        _ => name,
    }
}

fn field_name(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        match c {
            '-' | '.' => out.push('_'),
            c => out.extend(c.to_lowercase()),
        }
    }
    const KEYWORDS: &[&str] = &[
        "type", "static", "in", "as", "match", "loop", "move", "ref", "final", "virtual", "async", "await", "abstract",
        "override", "macro", "try", "use", "where", "mod", "self", "priv", "box", "do", "yield", "gen",
    ];
    if KEYWORDS.contains(&out.as_str()) {
        out.push('_');
    }
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}
