//! The answer to `query-qmp-schema`: the schema, cut down to the commands and events that work.
//!
//! Type names are replaced by numbers, as QEMU does, so that nobody relies on them.

use crate::schema::{Builtin, Kind, TypeId, command, event_by_name};
use crate::visit::Limits;
use crate::wire::Map;
use serde_json::{Value, json};
use std::collections::{HashMap, VecDeque};

/// Describes the commands and events of those names, and the types that they need, within `limits`.
pub fn describe(commands: &[&str], events: &[&str], limits: &Limits) -> Vec<Value> {
    let mut d = Describer { limits, out: Vec::new(), names: HashMap::new(), masked: 0, todo: VecDeque::new() };
    for def in commands.iter().filter_map(|name| command(name)) {
        let (arg, ret) = (d.object_name(def.arg), d.object_name(def.ret));
        let mut v = json!({"name": def.name, "meta-type": "command", "arg-type": arg, "ret-type": ret});
        if def.oob {
            v["allow-oob"] = Value::Bool(true);
        }
        d.push(v, def.features);
    }
    for def in events.iter().filter_map(|name| event_by_name(name)) {
        let arg = d.object_name(def.arg);
        d.push(json!({"name": def.name, "meta-type": "event", "arg-type": arg}), def.features);
    }
    while let Some(used) = d.todo.pop_front() {
        d.describe_type(used);
    }
    d.out
}

/// What a name stands for; the empty object has no entry in the tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Used {
    Empty,
    Builtin(&'static str),
    Type(TypeId),
}

struct Describer<'a> {
    limits: &'a Limits,
    out: Vec<Value>,
    names: HashMap<Used, String>,
    masked: usize,
    todo: VecDeque<Used>,
}

impl Describer<'_> {
    fn push(&mut self, mut v: Value, features: &[&str]) {
        if !features.is_empty() {
            v["features"] = json!(features);
        }
        self.out.push(v);
    }

    /// The name of a command's argument or result.
    fn object_name(&mut self, ty: Option<TypeId>) -> String {
        match ty {
            Some(ty) => self.name(ty),
            None => self.used(Used::Empty),
        }
    }

    fn name(&mut self, ty: TypeId) -> String {
        match &ty.def().kind {
            Kind::Builtin(b) => self.used(Used::Builtin(json_name(*b))),
            _ => self.used(Used::Type(ty)),
        }
    }

    /// The name under which a type is known, which is found at first use.
    fn used(&mut self, used: Used) -> String {
        if let Some(name) = self.names.get(&used) {
            return name.clone();
        }
        let name = match used {
            Used::Builtin(name) => name.to_owned(),
            Used::Type(ty) => match ty.def().kind {
                Kind::Array(element) => format!("[{}]", self.name(element)),
                _ => self.mask(),
            },
            Used::Empty => self.mask(),
        };
        self.names.insert(used, name.clone());
        self.todo.push_back(used);
        name
    }

    fn mask(&mut self) -> String {
        self.masked += 1;
        (self.masked - 1).to_string()
    }

    fn describe_type(&mut self, used: Used) {
        let name = self.used(used);
        let ty = match used {
            Used::Empty => return self.push(json!({"name": name, "meta-type": "object", "members": []}), &[]),
            Used::Builtin(b) => {
                let json_type = if b == "any" { "value" } else { json_type(b) };
                return self.push(json!({"name": name, "meta-type": "builtin", "json-type": json_type}), &[]);
            }
            Used::Type(ty) => ty,
        };
        let def = ty.def();
        let mut v = match &def.kind {
            // Named above.
            Kind::Builtin(_) => return,
            Kind::Array(element) => {
                let element = self.name(*element);
                json!({"name": name, "meta-type": "array", "element-type": element})
            }
            Kind::Enum(members) => {
                let members: Vec<_> = members.iter().filter(|m| self.limits.allows(ty, m.name)).collect();
                let values: Vec<_> = members.iter().map(|m| m.name).collect();
                let members: Vec<_> =
                    members.iter().map(|m| with_features(json!({"name": m.name}), m.features)).collect();
                json!({"name": name, "meta-type": "enum", "members": members, "values": values})
            }
            Kind::Alternate(branches) => {
                let members: Vec<_> = branches.iter().map(|b| json!({"type": self.name(b.ty)})).collect();
                json!({"name": name, "meta-type": "alternate", "members": members})
            }
            Kind::Object { members, tag, variants } => {
                let list: Vec<_> = members
                    .iter()
                    .map(|m| {
                        let mut v = json!({"name": m.name, "type": self.name(m.ty)});
                        if m.optional {
                            v["default"] = Value::Null;
                        }
                        with_features(v, m.features)
                    })
                    .collect();
                let mut v = json!({"name": name, "meta-type": "object", "members": list});
                if let Some(tag) = tag {
                    v["tag"] = members[*tag].name.into();
                    v["variants"] = self.variants(members[*tag].ty, variants);
                }
                v
            }
        };
        if !def.features.is_empty() {
            v["features"] = json!(def.features);
        }
        self.out.push(v);
    }

    /// Every value of the tag has a variant; most that the schema does not name are empty.
    fn variants(&mut self, tag: TypeId, variants: &[crate::schema::Variant]) -> Value {
        let Kind::Enum(cases) = &tag.def().kind else { return Value::Array(Vec::new()) };
        let offered = |case: &str| self.limits.allows(tag, case);
        let mut list: Vec<(&str, Option<TypeId>)> =
            variants.iter().filter(|v| offered(v.case)).map(|v| (v.case, Some(v.ty))).collect();
        let empty = |case: &str| offered(case) && !variants.iter().any(|v| v.case == case);
        list.extend(cases.iter().filter(|c| empty(c.name)).map(|c| (c.name, None)));
        let list = list.into_iter().map(|(case, ty)| json!({"case": case, "type": self.object_name(ty)})).collect();
        Value::Array(list)
    }
}

fn with_features(mut v: Value, features: &[&str]) -> Value {
    if let (false, Some(map)) = (features.is_empty(), v.as_object_mut()) {
        let map: &mut Map = map;
        map.insert("features".into(), json!(features));
    }
    v
}

/// The introspection knows one integer type.
fn json_name(b: Builtin) -> &'static str {
    match b {
        Builtin::Str => "str",
        Builtin::Number => "number",
        Builtin::Bool => "bool",
        Builtin::Null => "null",
        Builtin::Any => "any",
        _ => "int",
    }
}

fn json_type(name: &str) -> &str {
    match name {
        "str" => "string",
        "bool" => "boolean",
        other => other,
    }
}

#[cfg(test)]
#[path = "tests/introspect.rs"]
mod tests;
