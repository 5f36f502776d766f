//! The commands that work: handlers by name, and what a session must know of them.

use crate::introspect;
use crate::schema::{self, CommandDef, CommandInfo, VersionInfo};
use crate::session::Call;
use crate::visit::Limits;
use crate::wire::{Arguments, Command, Enum, EventType, Map, Reply};
use crate::{cmd, visit};
use lockstep_util::{Error, ErrorClass, Result, err};
use serde_json::Value;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A future that stays on its thread.
pub type LocalBoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

type Handler<C> = Rc<dyn Fn(C, Map) -> LocalBoxFuture<'static, Result<Value>>>;
type OobHandler = Arc<dyn Fn(Map) -> Result<Value> + Send + Sync>;

/// What any thread may know of the commands: which exist, which run out of band, and those that do.
#[derive(Default)]
pub struct Catalogue {
    commands: BTreeMap<&'static str, &'static CommandDef>,
    oob: BTreeMap<&'static str, OobHandler>,
    limits: Limits,
    /// True while the machine is not built yet (`--preconfig`): then only commands with `allow-preconfig` run.
    preconfig: AtomicBool,
}

impl Catalogue {
    /// Whether the command may run now, and out of band if `oob`.
    pub fn permit(&self, name: &str, oob: bool) -> Result<&'static CommandDef> {
        let Some(def) = self.commands.get(name).copied() else {
            let message = format!("The command {name} has not been found");
            return Err(Error::with_class(ErrorClass::CommandNotFound, message));
        };
        if oob && !def.oob {
            return Err(err!("The command {name} does not support OOB"));
        }
        if !def.preconfig && self.preconfig.load(Ordering::Acquire) {
            let message = format!("The command '{name}' is permitted only after machine initialization has completed");
            return Err(Error::new(message));
        }
        Ok(def)
    }

    /// Runs a command out of band, on the caller's thread.
    pub fn call_oob(&self, call: &Call) -> Result<Value> {
        let def = self.permit(&call.name, true)?;
        match self.oob.get(def.name) {
            Some(handler) => handler(visit::arguments(def, call.arguments.clone(), &self.limits)?),
            None => Err(err!("The command {} does not support OOB", call.name)),
        }
    }

    /// Says whether the machine still has to be built (`--preconfig`).
    pub fn set_preconfig(&self, preconfig: bool) {
        self.preconfig.store(preconfig, Ordering::Release);
    }

    /// The commands, by name.
    pub fn commands(&self) -> impl Iterator<Item = &'static CommandDef> + '_ {
        self.commands.values().copied()
    }
}

/// Collects the commands at start-up; `C` is what handlers work on (a cheap handle of the system).
pub struct Registry<C> {
    catalogue: Catalogue,
    handlers: BTreeMap<&'static str, Handler<C>>,
    events: Vec<&'static str>,
}

impl<C: Clone + 'static> Registry<C> {
    /// A registry with the commands that need nothing but the interface itself: `qmp_capabilities`, `query-version`,
    /// `query-commands` and `query-qmp-schema`.
    pub fn new(version: VersionInfo) -> Self {
        let mut registry = Self { catalogue: Catalogue::default(), handlers: BTreeMap::new(), events: Vec::new() };
        // The session answers this one; it only has to be listed.
        registry.catalogue.commands.insert(cmd::QmpCapabilities::DEF.name, cmd::QmpCapabilities::DEF);
        registry.register::<cmd::QueryVersion>(async move |_, _| Ok(version.clone()));
        registry
    }

    /// Adds a command that runs in order on the main context. Panics if it is there already: a mistake of the program.
    pub fn register<K: Command + 'static>(&mut self, handler: impl AsyncFn(C, K::Args) -> Result<K::Ret> + 'static) {
        let handler = Rc::new(handler);
        let run = move |ctx: C, args: Map| -> LocalBoxFuture<'static, Result<Value>> {
            let handler = handler.clone();
            Box::pin(async move { Ok(handler(ctx, K::Args::from_members(args)?).await?.into_value()) })
        };
        self.insert(K::DEF, Rc::new(run));
    }

    /// Adds a command that may also run out of band, on the thread that reads the monitor: it must not block, nor wait
    /// for anything that the main context does.
    pub fn register_oob<K: Command + 'static>(
        &mut self,
        handler: impl Fn(K::Args) -> Result<K::Ret> + Send + Sync + 'static,
    ) {
        assert!(K::DEF.oob, "{} may not run out of band", K::DEF.name);
        let run: OobHandler = Arc::new(move |args| Ok(handler(K::Args::from_members(args)?)?.into_value()));
        self.catalogue.oob.insert(K::DEF.name, run.clone());
        let in_band = move |_: C, args: Map| -> LocalBoxFuture<'static, Result<Value>> {
            let result = run(args);
            Box::pin(std::future::ready(result))
        };
        self.insert(K::DEF, Rc::new(in_band));
    }

    /// Says that an event can be sent; the introspection lists those only.
    pub fn announce<E: EventType>(&mut self) {
        self.events.push(E::DEF.name);
    }

    /// Says which values of an enumeration work, if not all that the schema has; the others are not listed and not taken.
    pub fn offer_only<E: Enum>(&mut self, values: &[E]) {
        self.catalogue.limits.only(values);
    }

    fn insert(&mut self, def: &'static CommandDef, handler: Handler<C>) {
        let old = self.handlers.insert(def.name, handler);
        assert!(old.is_none(), "{} is registered twice", def.name);
        self.catalogue.commands.insert(def.name, def);
    }

    /// Ends the registration. The answers to `query-commands` and `query-qmp-schema` are fixed here.
    pub fn build(mut self) -> Dispatcher<C> {
        for def in [cmd::QueryCommands::DEF, cmd::QueryQmpSchema::DEF] {
            self.catalogue.commands.insert(def.name, def);
        }
        let order = |name: &str| schema::COMMANDS.iter().position(|c| c.name == name);
        let mut names: Vec<_> = self.catalogue.commands.keys().copied().collect();
        names.sort_by_key(|name| order(name));
        let list: Vec<_> = names.iter().map(|name| CommandInfo { name: (*name).to_owned() }).collect();
        let answer = Value::Array(introspect::describe(&names, &self.events, &self.catalogue.limits));
        self.register::<cmd::QueryCommands>(async move |_, _| Ok(list.clone()));
        let schema = move |_: C, _: Map| -> LocalBoxFuture<'static, Result<Value>> {
            Box::pin(std::future::ready(Ok(answer.clone())))
        };
        self.insert(cmd::QueryQmpSchema::DEF, Rc::new(schema));
        Dispatcher { catalogue: Arc::new(self.catalogue), handlers: self.handlers }
    }
}

/// Runs commands.
pub struct Dispatcher<C> {
    catalogue: Arc<Catalogue>,
    handlers: BTreeMap<&'static str, Handler<C>>,
}

impl<C: Clone + 'static> Dispatcher<C> {
    /// What sessions and reader threads need.
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// Runs a command in order. The future borrows nothing, so it can be spawned.
    pub fn call(&self, ctx: C, name: &str, arguments: Map) -> LocalBoxFuture<'static, Result<Value>> {
        let checked = self.catalogue.permit(name, false).and_then(|def| {
            let handler = self.handlers.get(def.name).ok_or_else(|| err!("The command {name} has no handler"))?;
            Ok((handler, visit::arguments(def, arguments, &self.catalogue.limits)?))
        });
        match checked {
            Ok((handler, arguments)) => handler(ctx, arguments),
            Err(e) => Box::pin(std::future::ready(Err(e))),
        }
    }

    /// Runs a command of the schema with typed arguments and result, as from inside the program.
    pub async fn execute<K: Command>(&self, ctx: C, args: &K::Args) -> Result<K::Ret> {
        K::Ret::from_value(self.call(ctx, K::DEF.name, args.to_members()).await?)
    }
}
