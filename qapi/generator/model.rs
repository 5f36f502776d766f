//! Turns parsed expressions into a checked model: every name resolved, bases flattened, conditions evaluated.

use super::parse::{Expr, Value};
use std::collections::HashMap;

/// Index of a type in [`Schema::types`].
pub type TypeId = usize;

/// The built-in types, at the start of [`Schema::types`] in this order.
pub const BUILTINS: &[&str] = &[
    "str", "int", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "size", "number", "bool",
    "null", "any",
];

#[derive(Debug)]
pub struct Member {
    pub name: String,
    pub ty: TypeId,
    pub optional: bool,
    pub features: Vec<String>,
}

#[derive(Debug)]
pub struct EnumMember {
    pub name: String,
    pub features: Vec<String>,
}

#[derive(Debug)]
pub enum Kind {
    Builtin,
    Enum(Vec<EnumMember>),
    Array(TypeId),
    /// Members include those of the bases, first. `tag` indexes `members`; `variants` pairs a tag value with its type.
    Object {
        members: Vec<Member>,
        tag: Option<usize>,
        variants: Vec<(String, TypeId)>,
    },
    Alternate(Vec<(String, TypeId)>),
}

#[derive(Debug)]
pub struct Type {
    pub name: String,
    pub kind: Kind,
    pub features: Vec<String>,
    pub doc: String,
}

#[derive(Debug)]
pub struct Command {
    pub name: String,
    pub arg: Option<TypeId>,
    /// The arguments are a named type, not members written in place.
    pub boxed: bool,
    pub ret: Option<TypeId>,
    pub typed: bool,
    pub oob: bool,
    pub preconfig: bool,
    pub coroutine: bool,
    pub features: Vec<String>,
    pub doc: String,
}

#[derive(Debug)]
pub struct Event {
    pub name: String,
    pub arg: Option<TypeId>,
    pub boxed: bool,
    pub features: Vec<String>,
    pub doc: String,
}

#[derive(Debug, Default)]
pub struct Schema {
    pub types: Vec<Type>,
    pub commands: Vec<Command>,
    pub events: Vec<Event>,
}

/// Builds the model from `(file, expressions)`; `defined` are the configuration symbols that are set.
pub fn build(files: &[(String, Vec<Expr>)], defined: &[&str]) -> Result<Schema, String> {
    let mut b = Builder { schema: Schema::default(), index: HashMap::new(), exprs: HashMap::new(), defined };
    for name in BUILTINS {
        b.add((*name).to_owned(), Kind::Builtin, Vec::new(), String::new())?;
    }
    let mut order = Vec::new();
    for (file, exprs) in files {
        for e in exprs {
            let at = |m: String| format!("{file}:{}: {m}", e.line);
            if !b.enabled(&e.body).map_err(at)? {
                continue;
            }
            let (what, name) = meta(&e.body).map_err(at)?;
            if what == "include" || what == "pragma" {
                continue;
            }
            if !matches!(what, "command" | "event") && b.exprs.insert(name.to_owned(), (what, e)).is_some() {
                return Err(at(format!("'{name}' is already defined")));
            }
            order.push((file, what, name, e));
        }
    }
    // Names first, so that types may refer to each other in any order.
    for (_, what, name, e) in &order {
        if !matches!(*what, "command" | "event") {
            b.add((*name).to_owned(), Kind::Builtin, b.features(&e.body), e.doc.clone())?;
        }
    }
    for (file, what, name, e) in order {
        b.define(what, name, e).map_err(|m| format!("{file}:{}: {name}: {m}", e.line))?;
    }
    Ok(b.schema)
}

/// The kind of an expression and the name that it defines.
fn meta(body: &Value) -> Result<(&'static str, &str), String> {
    for key in ["enum", "struct", "union", "alternate", "command", "event", "include", "pragma"] {
        if let Some(v) = body.get(key) {
            return Ok((key, v.as_str().unwrap_or_default()));
        }
    }
    Err("expression defines nothing".into())
}

struct Builder<'a> {
    schema: Schema,
    index: HashMap<String, TypeId>,
    exprs: HashMap<String, (&'static str, &'a Expr)>,
    defined: &'a [&'a str],
}

impl<'a> Builder<'a> {
    fn add(&mut self, name: String, kind: Kind, features: Vec<String>, doc: String) -> Result<TypeId, String> {
        let id = self.schema.types.len();
        if self.index.insert(name.clone(), id).is_some() {
            return Err(format!("'{name}' is already defined"));
        }
        self.schema.types.push(Type { name, kind, features, doc });
        Ok(id)
    }

    fn array(&mut self, element: TypeId) -> Result<TypeId, String> {
        let name = format!("[{}]", self.schema.types[element].name);
        match self.index.get(&name) {
            Some(id) => Ok(*id),
            None => self.add(name, Kind::Array(element), Vec::new(), String::new()),
        }
    }

    fn lookup(&self, name: &str) -> Result<TypeId, String> {
        self.index.get(name).copied().ok_or_else(|| format!("unknown type '{name}'"))
    }

    fn type_ref(&mut self, v: &Value) -> Result<TypeId, String> {
        match v {
            Value::Str(name) => self.lookup(name),
            Value::List(items) => match items.as_slice() {
                [Value::Str(name)] => {
                    let element = self.lookup(name)?;
                    self.array(element)
                }
                _ => Err("an array names one element type".into()),
            },
            _ => Err("expected a type".into()),
        }
    }

    fn features(&self, body: &Value) -> Vec<String> {
        let Some(Value::List(items)) = body.get("features") else { return Vec::new() };
        let enabled = items.iter().filter(|f| self.enabled(f).unwrap_or(true));
        enabled.filter_map(|f| f.as_str().or_else(|| f.get("name")?.as_str())).map(str::to_owned).collect()
    }

    fn enabled(&self, v: &Value) -> Result<bool, String> {
        v.get("if").map_or(Ok(true), |c| self.condition(c))
    }

    fn condition(&self, c: &Value) -> Result<bool, String> {
        if let Some(symbol) = c.as_str() {
            return Ok(self.defined.contains(&symbol));
        }
        let all = |v: &Value| match v {
            Value::List(items) => items.iter().map(|i| self.condition(i)).collect::<Result<Vec<_>, _>>(),
            _ => Err("a condition needs a list".to_owned()),
        };
        if let Some(list) = c.get("all") {
            return Ok(all(list)?.into_iter().all(|x| x));
        }
        if let Some(list) = c.get("any") {
            return Ok(all(list)?.into_iter().any(|x| x));
        }
        if let Some(one) = c.get("not") {
            return Ok(!self.condition(one)?);
        }
        Err("malformed condition".into())
    }

    fn members(&mut self, data: &Value) -> Result<Vec<Member>, String> {
        let Value::Dict(entries) = data else { return Err("members must be a dictionary".into()) };
        let mut members = Vec::new();
        for (key, v) in entries {
            if !self.enabled(v)? {
                continue;
            }
            let ty = self.type_ref(v.get("type").unwrap_or(v)).map_err(|e| format!("member '{key}': {e}"))?;
            let (name, optional) = key.strip_prefix('*').map_or((key.as_str(), false), |n| (n, true));
            members.push(Member { name: name.to_owned(), ty, optional, features: self.features(v) });
        }
        Ok(members)
    }

    /// All members of a struct, its bases' first. Works on the expression, so the order of definitions is free.
    fn flat(&mut self, body: &Value) -> Result<Vec<Member>, String> {
        let mut members = match body.get("base") {
            Some(Value::Str(base)) => {
                let (what, e) = *self.exprs.get(base.as_str()).ok_or_else(|| format!("unknown base '{base}'"))?;
                if what != "struct" {
                    return Err(format!("base '{base}' is not a struct"));
                }
                self.flat(&e.body)?
            }
            Some(inline) => self.members(inline)?,
            None => Vec::new(),
        };
        if body.get("discriminator").is_none() {
            let own = self.members(body.get("data").ok_or("no data")?)?;
            members.extend(own);
        }
        for (i, m) in members.iter().enumerate() {
            if members[..i].iter().any(|n| n.name == m.name) {
                return Err(format!("member '{}' occurs twice", m.name));
            }
        }
        Ok(members)
    }

    fn define(&mut self, what: &str, name: &str, e: &'a Expr) -> Result<(), String> {
        match what {
            "command" => return self.command(name, e),
            "event" => return self.event(name, e),
            _ => {}
        }
        let kind = match what {
            "enum" => Kind::Enum(self.enumeration(&e.body)?),
            "struct" => Kind::Object { members: self.flat(&e.body)?, tag: None, variants: Vec::new() },
            "union" => self.union(&e.body)?,
            _ => Kind::Alternate(self.branches(&e.body)?),
        };
        let id = self.lookup(name)?;
        self.schema.types[id].kind = kind;
        Ok(())
    }

    fn enumeration(&self, body: &Value) -> Result<Vec<EnumMember>, String> {
        let Some(Value::List(items)) = body.get("data") else { return Err("data must be a list".into()) };
        let mut members = Vec::new();
        for v in items {
            if !self.enabled(v)? {
                continue;
            }
            let name = v.as_str().or_else(|| v.get("name")?.as_str()).ok_or("malformed member")?;
            members.push(EnumMember { name: name.to_owned(), features: self.features(v) });
        }
        Ok(members)
    }

    fn branches(&mut self, body: &Value) -> Result<Vec<(String, TypeId)>, String> {
        let Some(Value::Dict(entries)) = body.get("data") else { return Err("data must be a dictionary".into()) };
        let mut branches = Vec::new();
        for (case, v) in entries {
            if self.enabled(v)? {
                branches.push((case.clone(), self.type_ref(v.get("type").unwrap_or(v))?));
            }
        }
        Ok(branches)
    }

    fn union(&mut self, body: &Value) -> Result<Kind, String> {
        let members = self.flat(body)?;
        let name = body.get("discriminator").and_then(Value::as_str).ok_or("a union needs a discriminator")?;
        let tag = members.iter().position(|m| m.name == name).ok_or("the discriminator is not in the base")?;
        let enum_name = self.schema.types[members[tag].ty].name.clone();
        let Some(("enum", e)) = self.exprs.get(&enum_name).copied() else {
            return Err("the discriminator is not an enum".into());
        };
        let cases = self.enumeration(&e.body)?;
        let mut variants = self.branches(body)?;
        let all = e.body.get("data");
        for (case, _) in &variants {
            let named = |v: &Value| v.as_str().or_else(|| v.get("name")?.as_str()) == Some(case);
            if !matches!(all, Some(Value::List(items)) if items.iter().any(named)) {
                return Err(format!("'{case}' is no value of '{enum_name}'"));
            }
        }
        // A value that the configuration leaves out takes its branch along.
        variants.retain(|(case, _)| cases.iter().any(|c| c.name == *case));
        Ok(Kind::Object { members, tag: Some(tag), variants })
    }

    /// The argument type of a command or event: a named one, or a new one for members written in place.
    fn argument(&mut self, name: &str, body: &Value) -> Result<(Option<TypeId>, bool), String> {
        match body.get("data") {
            None => Ok((None, false)),
            Some(Value::Str(ty)) => Ok((Some(self.lookup(ty)?), true)),
            Some(data) => {
                let members = self.members(data)?;
                let kind = Kind::Object { members, tag: None, variants: Vec::new() };
                Ok((Some(self.add(format!("{name}-arg"), kind, Vec::new(), String::new())?), false))
            }
        }
    }

    fn command(&mut self, name: &str, e: &Expr) -> Result<(), String> {
        let (arg, boxed) = self.argument(name, &e.body)?;
        let ret = e.body.get("returns").map(|r| self.type_ref(r)).transpose()?;
        let flag = |key| e.body.get(key).is_some_and(Value::is_true);
        self.schema.commands.push(Command {
            name: name.to_owned(),
            arg,
            boxed,
            ret,
            typed: e.body.get("gen").is_none_or(Value::is_true),
            oob: flag("allow-oob"),
            preconfig: flag("allow-preconfig"),
            coroutine: flag("coroutine"),
            features: self.features(&e.body),
            doc: e.doc.clone(),
        });
        Ok(())
    }

    fn event(&mut self, name: &str, e: &Expr) -> Result<(), String> {
        let (arg, boxed) = self.argument(name, &e.body)?;
        let features = self.features(&e.body);
        self.schema.events.push(Event { name: name.to_owned(), arg, boxed, features, doc: e.doc.clone() });
        Ok(())
    }
}
