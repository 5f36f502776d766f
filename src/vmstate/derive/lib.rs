//! `#[derive(VmState)]`: codec, version rules and description of a wire struct. Its attributes are explained in `lockstep_vmstate`.

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};
use syn::meta::ParseNestedMeta;
use syn::{Data, DeriveInput, Error, Expr, Field, Fields, Ident, LitInt, LitStr, Result, Type};

/// Implements `lockstep_vmstate::{VmState, Wire}` for a struct with named fields.
#[proc_macro_derive(VmState, attributes(vmstate))]
pub fn derive_vmstate(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = syn::parse_macro_input!(input as DeriveInput);
    expand(&input).unwrap_or_else(Error::into_compile_error).into()
}

struct StructAttributes {
    name: String,
    version: u32,
    minimum: u32,
}

impl StructAttributes {
    fn parse(input: &DeriveInput) -> Result<Self> {
        let (mut name, mut version, mut minimum) = (None, 1, None);
        for attribute in input.attrs.iter().filter(|a| a.path().is_ident("vmstate")) {
            attribute.parse_nested_meta(|meta| {
                match key(&meta).as_str() {
                    "name" => name = Some(meta.value()?.parse::<LitStr>()?.value()),
                    "version" => version = number(&meta)?,
                    "minimum" => minimum = Some(number(&meta)?),
                    _ => return Err(meta.error("expected name, version or minimum")),
                }
                Ok(())
            })?;
        }
        let name = name.ok_or_else(|| Error::new(Span::call_site(), "#[vmstate(name = \"...\")] is missing"))?;
        Ok(Self { name, version, minimum: minimum.unwrap_or(version) })
    }
}

struct WireField<'a> {
    id: &'a Ident,
    ty: &'a Type,
    name: Option<String>,
    kind: Option<String>,
    since: u32,
    count: Option<Expr>,
    max: Option<Expr>,
    when: Option<Expr>,
    subsection: bool,
    each: bool,
}

impl<'a> WireField<'a> {
    fn parse(field: &'a Field) -> Result<Self> {
        let id = field.ident.as_ref().ok_or_else(|| Error::new_spanned(field, "a named field is needed"))?;
        let mut out = Self {
            id,
            ty: &field.ty,
            name: None,
            kind: None,
            since: 0,
            count: None,
            max: None,
            when: None,
            subsection: false,
            each: false,
        };
        for attribute in field.attrs.iter().filter(|a| a.path().is_ident("vmstate")) {
            attribute.parse_nested_meta(|meta| {
                match key(&meta).as_str() {
                    "name" => out.name = Some(meta.value()?.parse::<LitStr>()?.value()),
                    "kind" => out.kind = Some(meta.value()?.parse::<LitStr>()?.value()),
                    "since" => out.since = number(&meta)?,
                    "count" => out.count = Some(meta.value()?.parse()?),
                    "max" => out.max = Some(meta.value()?.parse()?),
                    "when" => out.when = Some(meta.value()?.parse()?),
                    "subsection" => out.subsection = true,
                    "each" => out.each = true,
                    _ => return Err(meta.error("expected name, kind, since, count, max, when, each or subsection")),
                }
                Ok(())
            })?;
        }
        if out.count.is_some() != out.max.is_some() {
            return Err(Error::new_spanned(field, "count and max go together"));
        }
        Ok(out)
    }

    /// The name that the type or the author gives it.
    fn wire_name(&self) -> TokenStream {
        let (ty, id) = (self.value_type(), self.id.to_string());
        match &self.name {
            Some(name) => quote!(#name),
            None => quote! {
                match <#ty as lockstep_vmstate::Wire>::FIXED_NAME { Some(name) => name, None => #id }
            },
        }
    }

    /// The type on the wire: of a conditional field what is in the `Option`.
    fn value_type(&self) -> TokenStream {
        let ty = self.ty;
        match (self.when.is_some() || self.subsection, option_content(ty)) {
            (true, Some(inner)) => quote!(#inner),
            _ => quote!(#ty),
        }
    }

    fn save(&self) -> TokenStream {
        let id = self.id;
        match &self.when {
            Some(_) => quote!(if let Some(value) = &self.#id { lockstep_vmstate::Wire::put(value, out); }),
            None => quote!(lockstep_vmstate::Wire::put(&self.#id, out);),
        }
    }

    fn load(&self) -> TokenStream {
        let (id, ty, since) = (self.id, self.ty, self.since);
        let value_ty = self.value_type();
        let read = match (&self.when, &self.count, &self.max) {
            (Some(when), ..) => quote! {
                if #when { Some(<#value_ty as lockstep_vmstate::Wire>::get(input)?) } else { None }
            },
            (None, Some(count), Some(max)) => {
                let element = vec_content(ty).map_or_else(|| quote!(#ty), |t| quote!(#t));
                let name = id.to_string();
                quote! {{
                    let count = (#count) as usize;
                    if count > (#max) as usize {
                        return Err(lockstep_vmstate::LoadError::invalid(
                            format!("{}: {} elements in {}, at most {} fit", Self::NAME, count, #name, #max)));
                    }
                    <#element as lockstep_vmstate::Wire>::get_vec(input, count)?
                }}
            }
            _ => quote!(<#ty as lockstep_vmstate::Wire>::get(input)?),
        };
        let absent = match self.when {
            Some(_) => quote!(None),
            None => quote!(<#ty as lockstep_vmstate::Wire>::absent()),
        };
        match since {
            0 => quote!(let #id: #ty = #read;),
            _ => quote!(let #id: #ty = if version >= #since { #read } else { #absent };),
        }
    }

    fn describe(&self) -> TokenStream {
        let id = self.id;
        let kind = match &self.kind {
            Some(kind) => quote!(Some(#kind)),
            None => quote!(None),
        };
        match self.when {
            Some(_) => quote!(fields.field(self.#id.as_ref(), #kind);),
            None if self.each => quote!(fields.field_each(&self.#id[..]);),
            None => quote!(fields.field(Some(&self.#id), #kind);),
        }
    }

    fn layout(&self) -> TokenStream {
        let (name, since, ty) = (self.wire_name(), self.since, self.value_type());
        let conditional = self.when.is_some() || self.each;
        let opaque = self.kind.is_some();
        quote! {{
            let mut shape = <#ty as lockstep_vmstate::Wire>::shape();
            if #opaque && shape.count != 1 {
                shape = lockstep_vmstate::Shape::opaque(shape.size * shape.count);
            }
            lockstep_vmstate::LayoutField { name: #name, since: #since, conditional: #conditional, shape }
        }}
    }
}

fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let StructAttributes { name, version, minimum } = StructAttributes::parse(input)?;
    let ty = &input.ident;
    let fields = match &input.data {
        Data::Struct(data) => match &data.fields {
            Fields::Named(named) => named.named.iter().map(WireField::parse).collect::<Result<Vec<_>>>()?,
            _ => return Err(Error::new_spanned(ty, "named fields are needed")),
        },
        _ => return Err(Error::new_spanned(ty, "only a struct has a wire form")),
    };
    let (subsections, plain): (Vec<_>, Vec<_>) = fields.iter().partition(|f| f.subsection);
    for sub in &subsections {
        if option_content(sub.ty).is_none() {
            return Err(Error::new_spanned(sub.ty, "a subsection is an Option"));
        }
    }
    let ids: Vec<_> = fields.iter().map(|f| f.id).collect();
    let names = plain.iter().map(|f| f.wire_name());
    let save = plain.iter().map(|f| f.save());
    let load = plain.iter().map(|f| f.load());
    let describe = plain.iter().map(|f| f.describe());
    let layout = plain.iter().map(|f| f.layout());
    let absent = fields.iter().map(|f| {
        let (id, fty) = (f.id, f.ty);
        match f.subsection || f.when.is_some() {
            true => quote!(#id: None),
            false => quote!(#id: <#fty as lockstep_vmstate::Wire>::absent()),
        }
    });
    let uniform_types = plain.iter().map(|f| f.value_type());
    let conditional = !subsections.is_empty() || plain.iter().any(|f| f.when.is_some());
    let sub_ids: Vec<_> = subsections.iter().map(|f| f.id).collect();
    let sub_types: Vec<_> = subsections.iter().map(|f| f.value_type()).collect();
    let names_const = format_ident!("FIELD_NAMES");

    Ok(quote! {
        impl lockstep_vmstate::VmState for #ty {
            const NAME: &'static str = #name;
            const VERSION: u32 = #version;
            const MINIMUM: u32 = #minimum;

            fn encode(&self, out: &mut lockstep_vmstate::Encoder) {
                #(#save)*
                #(if let Some(sub) = &self.#sub_ids {
                    out.put_subsection(
                        <#sub_types as lockstep_vmstate::VmState>::NAME, <#sub_types as lockstep_vmstate::VmState>::VERSION);
                    lockstep_vmstate::VmState::encode(sub, out);
                })*
            }

            #[allow(unused_variables, clippy::unnecessary_cast)]
            fn decode(input: &mut lockstep_vmstate::Decoder<'_>, version: u32) -> Result<Self, lockstep_vmstate::LoadError> {
                lockstep_vmstate::derive_support::check_version(Self::NAME, version, Self::VERSION, Self::MINIMUM)?;
                #(#load)*
                #(let mut #sub_ids: Option<#sub_types> = None;)*
                while let Some((name, version)) = input.subsection(Self::NAME)? {
                    #(if name == <#sub_types as lockstep_vmstate::VmState>::NAME {
                        #sub_ids = Some(<#sub_types as lockstep_vmstate::VmState>::decode(input, version)?);
                        continue;
                    })*
                    return Err(lockstep_vmstate::LoadError::Subsection {
                        parent: Self::NAME.to_owned(), name: name.to_owned() });
                }
                Ok(Self { #(#ids),* })
            }

            fn description(&self) -> lockstep_vmstate::derive_support::Value {
                const #names_const: &[&str] = &[#(#names),*];
                let mut fields = lockstep_vmstate::derive_support::StructFields::new(#names_const);
                #(#describe)*
                #[allow(unused_mut)]
                let mut subsections = Vec::new();
                #(if let Some(sub) = &self.#sub_ids {
                    subsections.push(lockstep_vmstate::VmState::description(sub));
                })*
                lockstep_vmstate::derive_support::describe_struct(Self::NAME, Self::VERSION, fields, subsections)
            }

            fn layout() -> lockstep_vmstate::Layout {
                lockstep_vmstate::Layout {
                    name: Self::NAME,
                    version: Self::VERSION,
                    minimum: Self::MINIMUM,
                    fields: vec![#(#layout),*],
                    subsections: vec![#(<#sub_types as lockstep_vmstate::VmState>::layout()),*],
                }
            }
        }

        impl lockstep_vmstate::Wire for #ty {
            const KIND: &'static str = "struct";

            fn put(&self, out: &mut lockstep_vmstate::Encoder) {
                lockstep_vmstate::VmState::encode(self, out);
            }

            fn get(input: &mut lockstep_vmstate::Decoder<'_>) -> Result<Self, lockstep_vmstate::LoadError> {
                <Self as lockstep_vmstate::VmState>::decode(input, <Self as lockstep_vmstate::VmState>::VERSION)
            }

            fn absent() -> Self {
                Self { #(#absent),* }
            }

            fn shape() -> lockstep_vmstate::Shape {
                lockstep_vmstate::Shape::of_struct(<Self as lockstep_vmstate::VmState>::layout())
            }

            fn describe_inner(&self) -> Option<lockstep_vmstate::derive_support::Value> {
                Some(lockstep_vmstate::VmState::description(self))
            }

            fn uniform() -> bool {
                !#conditional #(&& <#uniform_types as lockstep_vmstate::Wire>::uniform())*
            }
        }
    })
}

fn key(meta: &ParseNestedMeta<'_>) -> String {
    meta.path.get_ident().map(Ident::to_string).unwrap_or_default()
}

fn number(meta: &ParseNestedMeta<'_>) -> Result<u32> {
    meta.value()?.parse::<LitInt>()?.base10_parse()
}

fn option_content(ty: &Type) -> Option<&Type> {
    generic_argument(ty, "Option")
}

fn vec_content(ty: &Type) -> Option<&Type> {
    generic_argument(ty, "Vec")
}

/// `T` of a type spelled `Wrapper<T>`.
fn generic_argument<'a>(ty: &'a Type, wrapper: &str) -> Option<&'a Type> {
    let Type::Path(path) = ty else { return None };
    let last = path.path.segments.last().filter(|s| s.ident == wrapper)?;
    let syn::PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    match arguments.args.first()? {
        syn::GenericArgument::Type(inner) => Some(inner),
        _ => None,
    }
}
