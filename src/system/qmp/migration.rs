//! Migration and COLO.

use lockstep_block::replication::{ReplicationMode, all};
use lockstep_migration::MigrateArguments;
use lockstep_qapi::{Registry, Wire, cmd, event, schema::*, visit};
use lockstep_util::{Error, ErrorClass, Result, bail, err};
use serde_json::Value;

use super::Ctx;
use crate::colo_net::statistics as colo_statistics;

pub fn register(registry: &mut Registry<Ctx>) {
    settings(registry);
    registry.register::<cmd::Migrate>(async |vm: Ctx, a: cmd::Migrate| {
        let channels = a.channels.map(|list| list.iter().map(Wire::to_wire).collect());
        let arguments = MigrateArguments { uri: a.uri, channels, resume: a.resume.unwrap_or(false) };
        vm.migration()?.migrate(&arguments)
    });
    registry.register::<cmd::MigrateIncoming>(async |vm: Ctx, a: cmd::MigrateIncoming| {
        let channels: Option<Vec<Value>> = a.channels.map(|list| list.iter().map(Wire::to_wire).collect());
        vm.migration()?.migrate_incoming(a.uri.as_deref(), channels.as_deref(), a.exit_on_error)
    });
    registry.register::<cmd::MigrateCancel>(async |vm: Ctx, _| {
        vm.migration()?.cancel();
        Ok(())
    });
    registry.register::<cmd::MigrateContinue>(async |vm: Ctx, a: cmd::MigrateContinue| {
        vm.migration()?.go_on(a.state.as_str())
    });
    registry.register::<cmd::QueryMigrate>(async |vm: Ctx, _| {
        let mut info = vm.migration()?.info().to_json();
        if let Some(statistics) = colo_statistics(&vm).await? {
            info["colo"] = statistics;
        }
        visit::from_json::<MigrationInfo>(info)
    });
    registry.register::<cmd::XColoLostHeartbeat>(async |vm: Ctx, _| vm.migration()?.colo_lost_heartbeat());
    registry.register::<cmd::QueryColoStatus>(async |vm: Ctx, _| {
        let mut status = vm.migration()?.colo_status();
        if let Some(statistics) = colo_statistics(&vm).await? {
            status["statistics"] = statistics;
        }
        visit::from_json::<COLOStatus>(status)
    });
    replication(registry);
    registry.announce::<event::Migration>();
    registry.announce::<event::MigrationPass>();
    registry.announce::<event::ColoExit>();
    registry.announce::<event::XColoCheckpoint>();
}

/// The disks' part of COLO, for managers that checkpoint the memory themselves.
fn replication(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::XenSetReplication>(async |vm: Ctx, a: cmd::XenSetReplication| {
        if a.enable && a.failover.is_some() {
            bail!("Parameter 'failover' is only for stopping replication");
        }
        if a.enable {
            let mode = if a.primary { ReplicationMode::Primary } else { ReplicationMode::Secondary };
            return all::replication_start_all(&vm.graph, mode).await;
        }
        all::replication_stop_all(&vm.graph, a.failover.unwrap_or(false)).await
    });
    registry.register::<cmd::QueryXenReplicationStatus>(async |vm: Ctx, _| {
        let desc = all::replication_get_error_all(&vm.graph).err().map(|e| e.message().to_owned());
        Ok(ReplicationStatus { error: desc.is_some(), desc })
    });
    registry
        .register::<cmd::XenColoDoCheckpoint>(async |vm: Ctx, _| all::replication_do_checkpoint_all(&vm.graph).await);
}

fn settings(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::MigrateSetCapabilities>(async |vm: Ctx, a: cmd::MigrateSetCapabilities| {
        let changes = a.capabilities.iter().map(|c| (c.capability.as_str(), c.state));
        vm.migration()?.set_capabilities(changes)
    });
    registry.register::<cmd::QueryMigrateCapabilities>(async |vm: Ctx, _| {
        visit::from_json::<Vec<MigrationCapabilityStatus>>(vm.migration()?.capabilities().to_json())
    });
    registry.register::<cmd::MigrateSetParameters>(async |vm: Ctx, a: MigrateSetParameters| {
        let Value::Object(members) = a.to_wire() else { bail!("Parameter 'arguments' must be an object") };
        vm.migration()?.set_parameters(members.iter().map(|(k, v)| (k.as_str(), v.clone())))
    });
    registry.register::<cmd::QueryMigrateParameters>(async |vm: Ctx, _| {
        visit::from_json::<MigrationParameters>(vm.migration()?.parameters().to_json())
    });
}

/// `yank` and `query-yank`: they work on the thread that reads the monitor, while the main context may be held up.
pub fn register_yank(registry: &mut Registry<Ctx>, vm: &Ctx) -> Result<()> {
    let instances = vm.yank.clone();
    let migration = vm.migration()?.yank();
    // There is no postcopy that could be paused.
    registry.register_oob::<cmd::MigratePause>(|_| {
        Err(err!("migrate-pause is currently only supported during postcopy-active or postcopy-recover state"))
    });
    let (all, m) = (instances.clone(), migration.clone());
    registry.register_oob::<cmd::QueryYank>(move |_| {
        let mut all: Vec<YankInstance> = all.instances().into_iter().map(to_schema).collect();
        if m.is_registered() {
            all.push(YankInstance::Migration);
        }
        Ok(all)
    });
    registry.register_oob::<cmd::Yank>(move |args: cmd::Yank| {
        let wants_migration = args.instances.contains(&YankInstance::Migration);
        if wants_migration && !migration.is_registered() {
            return Err(Error::with_class(ErrorClass::DeviceNotFound, "Instance not found"));
        }
        let others: Vec<_> = args.instances.into_iter().filter_map(from_schema).collect();
        instances.yank(&others)?;
        if wants_migration {
            migration.pull();
        }
        Ok(())
    });
    Ok(())
}

fn from_schema(instance: YankInstance) -> Option<lockstep_util::YankInstance> {
    match instance {
        YankInstance::Chardev(chardev) => Some(lockstep_util::YankInstance::Chardev(chardev.id)),
        YankInstance::BlockNode(node) => Some(lockstep_util::YankInstance::BlockNode(node.node_name)),
        YankInstance::Migration => None,
    }
}

fn to_schema(instance: lockstep_util::YankInstance) -> YankInstance {
    match instance {
        lockstep_util::YankInstance::Chardev(id) => YankInstance::Chardev(YankInstanceChardev { id }),
        lockstep_util::YankInstance::BlockNode(node_name) => {
            YankInstance::BlockNode(YankInstanceBlockNode { node_name })
        }
        lockstep_util::YankInstance::Migration => YankInstance::Migration,
    }
}
