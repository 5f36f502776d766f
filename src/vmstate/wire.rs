//! The types a wire struct is made of.

use crate::describe::{Layout, Shape, describe_elements, describe_one};
use crate::{Decoder, Encoder, LoadError};
use serde_json::Value;

/// A value with a form on the wire. Derived for structs, provided for integers, `bool`, arrays, [`Buffer`], [`Unused`], [`Timer`].
pub trait Wire: Sized {
    /// QEMU's name of the type in descriptions.
    const KIND: &'static str;
    /// The field name that this type always has in descriptions.
    const FIXED_NAME: Option<&'static str> = None;

    /// Writes the value.
    fn put(&self, out: &mut Encoder);
    /// Reads a value.
    fn get(input: &mut Decoder<'_>) -> Result<Self, LoadError>;
    /// The value of a field that the stream's version did not have yet.
    fn absent() -> Self;
    /// What is known of the form without a value.
    fn shape() -> Shape;

    /// Appends the description of this value as a field of the given name.
    fn describe(&self, name: &str, out: &mut Vec<Value>) {
        out.push(describe_one(self, name, Self::KIND));
    }

    /// The inner description, of a struct.
    fn describe_inner(&self) -> Option<Value> {
        None
    }

    /// Whether one description does for all elements of an array.
    fn uniform() -> bool {
        true
    }

    /// Writes the elements of an array.
    fn put_slice(items: &[Self], out: &mut Encoder) {
        items.iter().for_each(|item| item.put(out));
    }

    /// Reads the elements of an array.
    fn get_vec(input: &mut Decoder<'_>, count: usize) -> Result<Vec<Self>, LoadError> {
        // Nothing on the wire is smaller than a byte, so memory is bounded by what arrived.
        let mut items = Vec::with_capacity(count.min(input.remaining()));
        for _ in 0..count {
            items.push(Self::get(input)?);
        }
        Ok(items)
    }

    /// Reads an array.
    fn get_array<const N: usize>(input: &mut Decoder<'_>) -> Result<[Self; N], LoadError> {
        // `get_vec` gave N elements.
        Self::get_vec(input, N)?.try_into().map_err(|_| LoadError::Short)
    }

    /// Appends the description of an array of such values.
    fn describe_slice(items: &[Self], name: &str, out: &mut Vec<Value>) {
        describe_elements(items, name, out);
    }
}

/// The state of a device, or a part of it, with a name and versions: what `#[derive(VmState)]` implements.
pub trait VmState: Wire {
    /// Name of the description (QEMU's vmsd), which is not always the section's.
    const NAME: &'static str;
    /// The version that is written.
    const VERSION: u32;
    /// The oldest version that is read.
    const MINIMUM: u32;

    /// Writes all fields and the subsections that are there.
    fn encode(&self, out: &mut Encoder);
    /// Reads fields of the given version and the subsections that follow.
    fn decode(input: &mut Decoder<'_>, version: u32) -> Result<Self, LoadError>;
    /// The description of this value: `vmsd_name`, `version`, `fields`, and `subsections` if there are any.
    fn description(&self) -> Value;
    /// The fields as declared.
    fn layout() -> Layout;
}

/// Refuses a version outside the range.
pub fn check_version(name: &str, got: u32, newest: u32, oldest: u32) -> Result<(), LoadError> {
    if got > newest || got < oldest {
        return Err(LoadError::Version { name: name.to_owned(), got, newest, oldest });
    }
    Ok(())
}

macro_rules! integers {
    ($($t:ty => $kind:literal),*) => {$(
        impl Wire for $t {
            const KIND: &'static str = $kind;
            fn put(&self, out: &mut Encoder) {
                out.put_bytes(&self.to_be_bytes());
            }
            fn get(input: &mut Decoder<'_>) -> Result<Self, LoadError> {
                Ok(Self::from_be_bytes(input.take_array()?))
            }
            fn absent() -> Self {
                0
            }
            fn shape() -> Shape {
                Shape::scalar(size_of::<Self>())
            }
            fn get_array<const N: usize>(input: &mut Decoder<'_>) -> Result<[Self; N], LoadError> {
                let bytes = input.take(N * size_of::<Self>())?;
                let (words, _) = bytes.as_chunks::<{ size_of::<Self>() }>();
                Ok(std::array::from_fn(|i| Self::from_be_bytes(words[i])))
            }
        }
    )*};
}

integers!(
    u16 => "uint16", u32 => "uint32", u64 => "uint64",
    i8 => "int8", i16 => "int16", i32 => "int32", i64 => "int64"
);

impl Wire for u8 {
    const KIND: &'static str = "uint8";
    fn put(&self, out: &mut Encoder) {
        out.put_u8(*self);
    }
    fn get(input: &mut Decoder<'_>) -> Result<Self, LoadError> {
        input.get_u8()
    }
    fn absent() -> Self {
        0
    }
    fn shape() -> Shape {
        Shape::scalar(1)
    }
    fn put_slice(items: &[Self], out: &mut Encoder) {
        out.put_bytes(items);
    }
    fn get_vec(input: &mut Decoder<'_>, count: usize) -> Result<Vec<Self>, LoadError> {
        Ok(input.take(count)?.to_vec())
    }
    fn get_array<const N: usize>(input: &mut Decoder<'_>) -> Result<[Self; N], LoadError> {
        input.take_array()
    }
}

impl Wire for bool {
    const KIND: &'static str = "bool";
    fn put(&self, out: &mut Encoder) {
        out.put_u8((*self).into());
    }
    fn get(input: &mut Decoder<'_>) -> Result<Self, LoadError> {
        Ok(input.get_u8()? != 0)
    }
    fn absent() -> Self {
        false
    }
    fn shape() -> Shape {
        Shape::scalar(1)
    }
}

impl<T: Wire, const N: usize> Wire for [T; N] {
    const KIND: &'static str = T::KIND;
    const FIXED_NAME: Option<&'static str> = T::FIXED_NAME;
    fn put(&self, out: &mut Encoder) {
        T::put_slice(self, out);
    }
    fn get(input: &mut Decoder<'_>) -> Result<Self, LoadError> {
        T::get_array(input)
    }
    fn absent() -> Self {
        std::array::from_fn(|_| T::absent())
    }
    fn shape() -> Shape {
        T::shape().times(N)
    }
    fn describe(&self, name: &str, out: &mut Vec<Value>) {
        T::describe_slice(self, name, out);
    }
    fn uniform() -> bool {
        T::uniform()
    }
    fn put_slice(items: &[Self], out: &mut Encoder) {
        T::put_slice(items.as_flattened(), out);
    }
    fn describe_slice(items: &[Self], name: &str, out: &mut Vec<Value>) {
        T::describe_slice(items.as_flattened(), name, out);
    }
}

/// A `Vec`'s length is an earlier field: the derive reads it (`count = ...`), so `get` is never asked for one.
impl<T: Wire> Wire for Vec<T> {
    const KIND: &'static str = T::KIND;
    const FIXED_NAME: Option<&'static str> = T::FIXED_NAME;
    fn put(&self, out: &mut Encoder) {
        T::put_slice(self, out);
    }
    fn get(_: &mut Decoder<'_>) -> Result<Self, LoadError> {
        Err(LoadError::invalid("An array without a count"))
    }
    fn absent() -> Self {
        Vec::new()
    }
    fn shape() -> Shape {
        T::shape().variable()
    }
    fn describe(&self, name: &str, out: &mut Vec<Value>) {
        T::describe_slice(self, name, out);
    }
    fn uniform() -> bool {
        T::uniform()
    }
}

/// `N` bytes as they are (QEMU's `VMSTATE_BUFFER`; `[u8; N]` is `VMSTATE_UINT8_ARRAY`, the same bytes described otherwise).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Buffer<const N: usize>(pub [u8; N]);

impl<const N: usize> std::fmt::Debug for Buffer<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl<const N: usize> Default for Buffer<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> From<[u8; N]> for Buffer<N> {
    fn from(bytes: [u8; N]) -> Self {
        Self(bytes)
    }
}

impl<const N: usize> std::ops::Deref for Buffer<N> {
    type Target = [u8; N];
    fn deref(&self) -> &[u8; N] {
        &self.0
    }
}

impl<const N: usize> std::ops::DerefMut for Buffer<N> {
    fn deref_mut(&mut self) -> &mut [u8; N] {
        &mut self.0
    }
}

impl<const N: usize> Wire for Buffer<N> {
    const KIND: &'static str = "buffer";
    fn put(&self, out: &mut Encoder) {
        out.put_bytes(&self.0);
    }
    fn get(input: &mut Decoder<'_>) -> Result<Self, LoadError> {
        Ok(Self(input.take_array()?))
    }
    fn absent() -> Self {
        Self::default()
    }
    fn shape() -> Shape {
        Shape::scalar(N)
    }
}

/// `N` bytes that once meant something: written as zeroes, skipped when read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unused<const N: usize>;

impl<const N: usize> Wire for Unused<N> {
    const KIND: &'static str = "unused_buffer";
    const FIXED_NAME: Option<&'static str> = Some("unused");
    fn put(&self, out: &mut Encoder) {
        out.put_zeroes(N);
    }
    fn get(input: &mut Decoder<'_>) -> Result<Self, LoadError> {
        input.take(N)?;
        Ok(Self)
    }
    fn absent() -> Self {
        Self
    }
    fn shape() -> Shape {
        Shape::scalar(N)
    }
}

/// When a timer will go off, in nanoseconds of its clock; `None` when it is not armed (all ones on the wire).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timer(pub Option<i64>);

impl From<Option<i64>> for Timer {
    fn from(deadline: Option<i64>) -> Self {
        Self(deadline)
    }
}

impl Wire for Timer {
    const KIND: &'static str = "timer";
    fn put(&self, out: &mut Encoder) {
        out.put_u64(self.0.unwrap_or(-1) as u64);
    }
    fn get(input: &mut Decoder<'_>) -> Result<Self, LoadError> {
        let deadline = input.get_u64()? as i64;
        Ok(Self((deadline != -1).then_some(deadline)))
    }
    fn absent() -> Self {
        Self(None)
    }
    fn shape() -> Shape {
        Shape::opaque(8)
    }
}
