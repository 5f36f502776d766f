//! The tree of objects, and objects and devices that come and go.

use lockstep_qapi::{Registry, cmd, schema::*};

use super::Ctx;
use crate::{objects::IoThreadObject, qom, types};

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
    registry.register::<cmd::QomListTypes>(async |_: Ctx, a: cmd::QomListTypes| {
        Ok(types::list(a.implements.as_deref(), a.abstract_.unwrap_or(false)))
    });
    registry
        .register::<cmd::QomListProperties>(async |_: Ctx, a: cmd::QomListProperties| types::properties(&a.typename));
    registry.register::<cmd::DeviceListProperties>(async |_: Ctx, a: cmd::DeviceListProperties| {
        types::device_properties(&a.typename)
    });
}
