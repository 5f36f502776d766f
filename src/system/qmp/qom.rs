//! The tree of objects, and objects and devices that come and go.

use lockstep_qapi::{Registry, cmd, schema::*};
use lockstep_util::{Error, bail};

use super::Ctx;
use crate::{machine, objects::IoThreadObject, qom};

pub fn register(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::QomList>(async |vm: Ctx, args: cmd::QomList| qom::list(&vm, &args.path));
    registry.register::<cmd::QomGet>(async |vm: Ctx, args: cmd::QomGet| qom::get(&vm, &args.path, &args.property));
    registry.register::<cmd::QomSet>(async |vm: Ctx, args: cmd::QomSet| {
        qom::set(&vm, &args.path, &args.property, &args.value)
    });
    registry.register::<cmd::ObjectAdd>(async |vm: Ctx, args: ObjectOptions| vm.objects.add(&vm, args).await);
    registry.register::<cmd::ObjectDel>(async |vm: Ctx, args: cmd::ObjectDel| vm.objects.delete(&args.id).await);
    registry.register::<cmd::QueryIothreads>(async |vm: Ctx, _| {
        let info = |id: String, thread: &IoThreadObject| IOThreadInfo {
            id,
            thread_id: thread.thread().thread_id().into(),
            // Our loops sleep in the kernel: they never poll.
            poll_max_ns: 0,
            poll_grow: 0,
            poll_shrink: 0,
            aio_max_batch: 0,
        };
        let all = vm.objects.all().into_iter();
        Ok(all.filter_map(|(id, o)| o.as_any().downcast::<IoThreadObject>().ok().map(|t| info(id, &t))).collect())
    });
    registry.register::<cmd::DeviceListProperties>(async |_: Ctx, args: cmd::DeviceListProperties| {
        let Some(kind) = machine::device_types().find(&args.typename) else {
            return Err(Error::device_not_found(&args.typename));
        };
        if kind.create.is_none() && kind.properties.is_empty() {
            bail!("Parameter 'typename' expects a non-abstract device type");
        }
        let info = |p: &lockstep_hw::core::Property| ObjectPropertyInfo {
            name: p.name.to_owned(),
            type_: p.type_name().to_owned(),
            description: Some(p.help_text().to_owned()).filter(|t| !t.is_empty()),
            default_value: None,
        };
        Ok(kind.properties().map(info).collect())
    });
}
