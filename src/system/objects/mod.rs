//! Objects that a user makes: `-object`, `object-add`, `object-del`.

mod help;
mod iothread;
mod net;
mod throttle;

use std::{cell::RefCell, future::Future, pin::Pin, rc::Rc};

use lockstep_qapi::opts::check_id;
use lockstep_qapi::schema::{ObjectOptions, ObjectOptionsBranch, ObjectType};
use lockstep_util::{Result, bail, err};
use serde_json::Value;

pub use help::{ObjectTypeHelp, TYPE_HELP};
pub use iothread::IoThreadObject;

use crate::vm::Vm;

/// A future that stays on the main context.
pub type LocalFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// An object that a user made.
pub trait UserObject {
    /// Its type.
    fn type_name(&self) -> &'static str;

    /// Names and types of its properties.
    fn properties(&self) -> Vec<(&'static str, &'static str)>;

    /// The value of one of its properties; `None` when it is unset.
    fn get(&self, name: &str) -> Option<Value>;

    /// Changes one of its properties.
    ///
    /// # Errors
    /// When the value does not fit, or the property cannot be changed.
    fn set(&self, name: &str, value: &Value) -> Result<()> {
        let _ = value;
        Err(err!("Property '{}.{name}' is not writable", self.type_name()))
    }

    /// Lets go of everything, before it is forgotten.
    ///
    /// # Errors
    /// When it is in use.
    fn delete(&self) -> LocalFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// The object as its own type, for those that need it.
    fn as_any(self: Rc<Self>) -> Rc<dyn std::any::Any>;
}

/// All objects, in the order in which they were made.
#[derive(Default)]
pub struct Objects {
    list: RefCell<Vec<(String, Rc<dyn UserObject>)>>,
}

impl Objects {
    /// The object of an id.
    pub fn find(&self, id: &str) -> Option<Rc<dyn UserObject>> {
        self.list.borrow().iter().find(|(i, _)| i == id).map(|(_, o)| o.clone())
    }

    /// All ids and objects.
    pub fn all(&self) -> Vec<(String, Rc<dyn UserObject>)> {
        self.list.borrow().clone()
    }

    /// The object of an id, if it is a `T`.
    pub fn find_as<T: 'static>(&self, id: &str) -> Option<Rc<T>> {
        self.find(id)?.as_any().downcast().ok()
    }

    /// Makes an object of checked options.
    ///
    /// # Errors
    /// When the id is taken or malformed, and whatever the object finds wrong.
    pub async fn add(&self, vm: &Rc<Vm>, options: ObjectOptions) -> Result<()> {
        let ObjectOptions { id, branch } = options;
        check_id(&id)?;
        if self.find(&id).is_some() {
            bail!("attempt to add duplicate property '{id}' to object (type 'container')");
        }
        let object = create(vm, &id, branch).await?;
        self.list.borrow_mut().push((id, object));
        Ok(())
    }

    /// `object-del`.
    ///
    /// # Errors
    /// When there is none, or it is in use.
    pub async fn delete(&self, id: &str) -> Result<()> {
        let object = self.find(id).ok_or_else(|| err!("object '{id}' not found"))?;
        object.delete().await?;
        self.list.borrow_mut().retain(|(i, _)| i != id);
        Ok(())
    }
}

async fn create(vm: &Rc<Vm>, id: &str, options: ObjectOptionsBranch) -> Result<Rc<dyn UserObject>> {
    match options {
        ObjectOptionsBranch::Iothread(_) => Ok(Rc::new(IoThreadObject::new(id)?)),
        ObjectOptionsBranch::ColoCompare(_)
        | ObjectOptionsBranch::FilterBuffer(_)
        | ObjectOptionsBranch::FilterDump(_)
        | ObjectOptionsBranch::FilterMirror(_)
        | ObjectOptionsBranch::FilterRedirector(_)
        | ObjectOptionsBranch::FilterRewriter(_) => net::create(vm, id, options),
        ObjectOptionsBranch::ThrottleGroup(properties) => throttle::create(vm, id, &properties),
        other => Err(err!("Parameter 'qom-type' does not accept value '{}'", other.tag().as_str())),
    }
}

/// The types of objects that there are.
pub const TYPES: [ObjectType; 8] = [
    ObjectType::ColoCompare,
    ObjectType::FilterBuffer,
    ObjectType::FilterDump,
    ObjectType::FilterMirror,
    ObjectType::FilterRedirector,
    ObjectType::FilterRewriter,
    ObjectType::Iothread,
    ObjectType::ThrottleGroup,
];

/// Whether an object needs network backends or character devices that come later than the first objects.
pub fn is_late(options: &ObjectOptions) -> bool {
    !matches!(
        options.branch,
        ObjectOptionsBranch::Iothread(_) | ObjectOptionsBranch::ThrottleGroup(_) | ObjectOptionsBranch::Secret(_)
    )
}
