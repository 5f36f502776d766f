//! What a section holds, in words: the JSON that ends a migration stream, and the declared layout that a test compares with QEMU's
//! `-dump-vmstate`.

use crate::{Encoder, Wire};
use serde_json::{Map, Value, json};

/// The declared layout of a wire struct.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Name of the description.
    pub name: &'static str,
    /// The version written.
    pub version: u32,
    /// The oldest version read.
    pub minimum: u32,
    /// The fields in order.
    pub fields: Vec<LayoutField>,
    /// The subsections.
    pub subsections: Vec<Layout>,
}

/// A declared field.
#[derive(Clone, Debug)]
pub struct LayoutField {
    /// Its name.
    pub name: &'static str,
    /// The first version that has it; 0 for all.
    pub since: u32,
    /// Whether it is there only under a condition.
    pub conditional: bool,
    /// Its form.
    pub shape: Shape,
}

/// What is known of a field's form without a value.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Bytes of one element on the wire, 0 if that varies.
    pub size: usize,
    /// How many elements; 0 if that varies.
    pub count: usize,
    /// Whether QEMU's own size of the field says nothing about the wire (a struct, a timer).
    pub opaque: bool,
    /// The layout, of a struct.
    pub inner: Option<Box<Layout>>,
}

impl Shape {
    /// One value of `size` bytes.
    pub fn scalar(size: usize) -> Self {
        Self { size, count: 1, opaque: false, inner: None }
    }

    /// One value of `size` bytes whose size in QEMU's memory is another.
    pub fn opaque(size: usize) -> Self {
        Self { opaque: true, ..Self::scalar(size) }
    }

    /// A nested struct.
    pub fn of_struct(layout: Layout) -> Self {
        Self { size: 0, count: 1, opaque: true, inner: Some(Box::new(layout)) }
    }

    /// An array of it.
    pub fn times(self, n: usize) -> Self {
        Self { count: self.count * n, ..self }
    }

    /// An array of a length known at run time.
    pub fn variable(self) -> Self {
        Self { count: 0, ..self }
    }
}

impl Layout {
    /// Compares with the `Description` object of QEMU's `-dump-vmstate`, and returns the differences in words. Fields that exist there
    /// under a condition (`field_exists`) may be missing here; subsections may be missing.
    pub fn differences(&self, dump: &Value) -> Vec<String> {
        let mut out = Vec::new();
        let number = |v: &Value, key: &str| v[key].as_u64().unwrap_or(0);
        if dump["name"].as_str() != Some(self.name) {
            out.push(format!("{}: QEMU's name is {}", self.name, dump["name"]));
        }
        for (key, ours) in [("version_id", self.version), ("minimum_version_id", self.minimum)] {
            if number(dump, key) != u64::from(ours) {
                out.push(format!("{}: {key} is {ours} here and {} there", self.name, number(dump, key)));
            }
        }
        let mut ours = self.fields.iter().peekable();
        for theirs in dump["Fields"].as_array().into_iter().flatten() {
            let name = theirs["field"].as_str().unwrap_or("");
            match ours.peek() {
                Some(field) if base_name(field.name) == name => {
                    field.compare(self.name, theirs, &mut out);
                    ours.next();
                }
                _ if theirs["field_exists"] == true => {}
                other => {
                    let other = other.map_or("nothing", |f| f.name);
                    out.push(format!("{}: field {name} expected, {other} found", self.name));
                    return out;
                }
            }
        }
        out.extend(ours.map(|f| format!("{}: field {} is not QEMU's", self.name, f.name)));
        let theirs: Vec<&Value> = dump["Subsections"].as_array().into_iter().flatten().collect();
        for sub in &self.subsections {
            match theirs.iter().find(|t| t["name"].as_str() == Some(sub.name)) {
                Some(t) => out.extend(sub.differences(t)),
                None => out.push(format!("{}: subsection {} is not QEMU's", self.name, sub.name)),
            }
        }
        out
    }
}

impl LayoutField {
    fn compare(&self, parent: &str, theirs: &Value, out: &mut Vec<String>) {
        let field = format!("{parent}.{}", self.name);
        if theirs["version_id"].as_u64() != Some(self.since.into()) {
            out.push(format!("{field}: since {} here, {} there", self.since, theirs["version_id"]));
        }
        let count = theirs["num"].as_u64().unwrap_or(1);
        if self.shape.count != 0 && self.shape.count as u64 != count {
            out.push(format!("{field}: {} elements here, {count} there", self.shape.count));
        }
        if !self.shape.opaque && theirs["size"].as_u64() != Some(self.shape.size as u64) {
            out.push(format!("{field}: {} bytes here, {} there", self.shape.size, theirs["size"]));
        }
        if let (Some(inner), Some(_)) = (&self.shape.inner, theirs["Description"].as_object()) {
            out.extend(inner.differences(&theirs["Description"]));
        }
    }
}

/// A name without the number that tells apart two fields of one name.
fn base_name(name: &str) -> &str {
    match name.strip_suffix(']').and_then(|n| n.rsplit_once('[')) {
        Some((base, digits)) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => base,
        _ => name,
    }
}

/// Collects the fields of a struct; used by the derive.
#[derive(Debug)]
pub struct StructFields {
    names: &'static [&'static str],
    next: usize,
    fields: Vec<Value>,
}

impl StructFields {
    /// For a struct whose declared fields have these names.
    pub fn new(names: &'static [&'static str]) -> Self {
        Self { names, next: 0, fields: Vec::new() }
    }

    /// The next declared field; `None` if it is not in the stream. `kind` overrides the type's name and makes the field one piece.
    pub fn field<T: Wire>(&mut self, value: Option<&T>, kind: Option<&str>) {
        let at = self.next;
        self.next += 1;
        let Some(value) = value else { return };
        let name = self.names[at];
        let same = |upto: usize| self.names[..upto].iter().filter(|n| **n == name).count();
        let name = match same(self.names.len()) {
            1 => name.to_owned(),
            _ => format!("{name}[{}]", same(at)),
        };
        match kind {
            Some(kind) => self.fields.push(describe_one(value, &name, kind)),
            None => value.describe(&name, &mut self.fields),
        }
    }

    /// The next declared field, an array that QEMU describes element by element.
    pub fn field_each<T: Wire>(&mut self, items: &[T]) {
        let name = self.names[self.next];
        self.next += 1;
        describe_each(items, name, items.len(), &mut self.fields);
    }
}

/// The description of a struct from its parts; used by the derive.
pub fn describe_struct(name: &str, version: u32, fields: StructFields, subsections: Vec<Value>) -> Value {
    let mut map = Map::new();
    map.insert("vmsd_name".into(), name.into());
    map.insert("version".into(), version.into());
    map.insert("fields".into(), fields.fields.into());
    if !subsections.is_empty() {
        map.insert("subsections".into(), subsections.into());
    }
    map.into()
}

pub(crate) fn describe_one<T: Wire>(value: &T, name: &str, kind: &str) -> Value {
    let mut counted = Encoder::new();
    value.put(&mut counted);
    let mut field = json!({"name": name, "type": kind, "size": counted.len()});
    match value.describe_inner() {
        // What goes through a struct made for the occasion is described in the field itself.
        Some(Value::Object(inner)) if kind == "tmp" => inner.into_iter().for_each(|(key, value)| field[key] = value),
        Some(inner) => field["struct"] = inner,
        None => {}
    }
    field
}

/// An array: one field with `array_len` if its elements are alike, else one an element.
pub(crate) fn describe_elements<T: Wire>(items: &[T], name: &str, out: &mut Vec<Value>) {
    if !T::uniform() {
        return describe_each(items, name, items.len(), out);
    }
    describe_each(&items[..items.len().min(1)], name, 1, out);
    if let Some(field) = out.last_mut().filter(|_| items.len() > 1) {
        field["array_len"] = items.len().into();
    }
}

/// The elements of an array of `count`, with `index` on all but the last.
fn describe_each<T: Wire>(items: &[T], name: &str, count: usize, out: &mut Vec<Value>) {
    for (i, item) in items.iter().enumerate() {
        let mut field = describe_one(item, name, T::KIND);
        if count - i > 1 {
            field["index"] = i.into();
        }
        out.push(field);
    }
}
