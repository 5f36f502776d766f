//! Disks: nodes, exports, jobs.

use lockstep_block::{
    Options, commands,
    export::{
        Exports, NbdExportOptions, RemoveMode,
        server::{ListenAddress, ServerOptions},
    },
    hmp,
    jobs::{
        Jobs, OnError,
        backup::{self, BackupArgs},
        chain::{self, CommitArgs, LayerName, StreamArgs},
        commands::{self as job_commands, CommonArgs, MirrorArgs, NewImageMode as NewImage},
        mirror::SyncMode,
    },
    medium::{self, DriveName},
};
use lockstep_qapi::{Registry, Wire, cmd, event, schema::*, visit};
use lockstep_util::{Result, bail, err};
use serde_json::Value;

use super::Ctx;

pub fn register(registry: &mut Registry<Ctx>) {
    nodes(registry);
    facts(registry);
    media(registry);
    exports(registry);
    jobs(registry);
    chain_jobs(registry);
    job_control(registry);
    let drivers: Vec<_> = lockstep_block::driver_names().filter_map(BlockdevDriver::from_name).collect();
    registry.offer_only(&drivers);
    registry.offer_only(&[JobType::Commit, JobType::Stream, JobType::Mirror, JobType::Backup]);
    registry.announce::<event::BlockJobReady>();
    registry.announce::<event::BlockJobCompleted>();
    registry.announce::<event::BlockJobCancelled>();
    registry.announce::<event::BlockJobError>();
    registry.announce::<event::BlockJobPending>();
    registry.announce::<event::JobStatusChange>();
    registry.announce::<event::BlockExportDeleted>();
    registry.announce::<event::QuorumFailure>();
    registry.announce::<event::QuorumReportBad>();
}

fn nodes(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::BlockdevAdd>(async |vm: Ctx, args: BlockdevOptions| {
        commands::blockdev_add(&vm.graph, Options::from_json(&args.to_wire())?).await
    });
    registry.register::<cmd::BlockdevDel>(async |vm: Ctx, args: cmd::BlockdevDel| {
        commands::blockdev_del(&vm.graph, &args.node_name).await
    });
    registry.register::<cmd::XBlockdevChange>(async |vm: Ctx, args: cmd::XBlockdevChange| {
        commands::x_blockdev_change(&vm.graph, &args.parent, args.child.as_deref(), args.node.as_deref()).await
    });
}

fn facts(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::QueryBlock>(async |vm: Ctx, _| {
        visit::from_json::<Vec<BlockInfo>>(vm.graph.query_block().await?.into())
    });
    registry.register::<cmd::QueryNamedBlockNodes>(async |vm: Ctx, args: cmd::QueryNamedBlockNodes| {
        let nodes = vm.graph.query_named_block_nodes(args.flat.unwrap_or(false)).await?;
        visit::from_json::<Vec<BlockDeviceInfo>>(nodes.into())
    });
    registry.register::<cmd::QueryBlockstats>(async |vm: Ctx, a: cmd::QueryBlockstats| {
        visit::from_json::<Vec<BlockStats>>(vm.graph.query_blockstats(a.query_nodes.unwrap_or(false)).into())
    });
    registry.register::<cmd::BlockResize>(async |vm: Ctx, args: cmd::BlockResize| {
        hmp::block_resize(&vm.graph, args.device.as_deref(), args.node_name.as_deref(), args.size).await
    });
}

fn media(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::Eject>(async |vm: Ctx, a: cmd::Eject| {
        medium::eject(&vm.graph, &DriveName::of(a.device, a.id)?, a.force.unwrap_or(false)).await
    });
    registry.register::<cmd::BlockdevOpenTray>(async |vm: Ctx, a: cmd::BlockdevOpenTray| {
        medium::open_tray(&vm.graph, &DriveName::of(a.device, a.id)?, a.force.unwrap_or(false))
    });
    registry.register::<cmd::BlockdevCloseTray>(async |vm: Ctx, a: cmd::BlockdevCloseTray| {
        medium::close_tray(&vm.graph, &DriveName::of(a.device, a.id)?)
    });
    registry.register::<cmd::BlockdevRemoveMedium>(async |vm: Ctx, a: cmd::BlockdevRemoveMedium| {
        medium::remove(&vm.graph, &DriveName::Device(a.id)).await
    });
    registry.register::<cmd::BlockdevInsertMedium>(async |vm: Ctx, a: cmd::BlockdevInsertMedium| {
        medium::insert(&vm.graph, &DriveName::Device(a.id), &a.node_name)
    });
    registry.register::<cmd::BlockdevChangeMedium>(async |vm: Ctx, a: cmd::BlockdevChangeMedium| {
        let read_only = match a.read_only_mode {
            None | Some(BlockdevChangeReadOnlyMode::Retain) => None,
            Some(BlockdevChangeReadOnlyMode::ReadOnly) => Some(true),
            Some(BlockdevChangeReadOnlyMode::ReadWrite) => Some(false),
        };
        let (name, force) = (DriveName::of(a.device, a.id)?, a.force.unwrap_or(false));
        medium::change(&vm.graph, &name, &a.filename, a.format.as_deref(), force, read_only).await
    });
    registry.announce::<event::DeviceTrayMoved>();
}

fn exports(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::NbdServerStart>(async |vm: Ctx, args: NbdServerOptionsLegacy| {
        if args.tls_creds.is_some() || args.tls_authz.is_some() {
            bail!("No TLS credentials with id '{}'", args.tls_creds.unwrap_or_default());
        }
        let address = match args.addr {
            SocketAddressLegacy::Inet(inet) => ListenAddress::Inet { host: inet.data.host, port: inet.data.port },
            SocketAddressLegacy::Unix(unix) => ListenAddress::Unix(unix.data.path.into()),
            other => bail!("NBD server does not listen on addresses of type '{}'", other.tag().as_str()),
        };
        let defaults = ServerOptions::new(address);
        let options = ServerOptions {
            max_connections: args.max_connections.unwrap_or(defaults.max_connections),
            handshake_max_seconds: args.handshake_max_seconds.unwrap_or(defaults.handshake_max_seconds),
            ..defaults
        };
        Exports::of(&vm.graph).server_start(&vm.graph, options).await
    });
    registry.register::<cmd::NbdServerAdd>(async |vm: Ctx, args: NbdServerAddOptions| {
        if args.bitmap.is_some() {
            bail!("Bitmap '{}' is not found", args.bitmap.unwrap_or_default());
        }
        let options = NbdExportOptions {
            id: String::new(),
            node: args.device,
            name: args.name,
            description: args.description,
            writable: args.writable.unwrap_or(false),
        };
        Exports::of(&vm.graph).server_add(&vm.graph, options).await
    });
    registry.register::<cmd::NbdServerRemove>(async |vm: Ctx, args: cmd::NbdServerRemove| {
        Exports::of(&vm.graph).server_remove(&vm.graph, &args.name, remove_mode(args.mode)).await
    });
    registry.register::<cmd::NbdServerStop>(async |vm: Ctx, _| Exports::of(&vm.graph).server_stop(&vm.graph).await);
    registry.register::<cmd::BlockExportAdd>(async |vm: Ctx, args: BlockExportOptions| {
        let BlockExportOptionsBranch::Nbd(nbd) = args.branch;
        if args.iothread.is_some() {
            bail!("iothread \"{}\" not found", args.iothread.unwrap_or_default());
        }
        if vm.graph.find_node(&args.node_name).is_none() {
            bail!("Cannot find device='' nor node-name='{}'", args.node_name);
        }
        let options = NbdExportOptions {
            id: args.id,
            node: args.node_name,
            name: nbd.name,
            description: nbd.description,
            writable: args.writable.unwrap_or(false),
        };
        Exports::of(&vm.graph).add(&vm.graph, options).await
    });
    registry.register::<cmd::BlockExportDel>(async |vm: Ctx, args: cmd::BlockExportDel| {
        Exports::of(&vm.graph).remove(&vm.graph, &args.id, remove_mode(args.mode)).await
    });
    registry.register::<cmd::QueryBlockExports>(async |vm: Ctx, _| {
        visit::from_json::<Vec<BlockExportInfo>>(Exports::of(&vm.graph).query())
    });
}

fn remove_mode(mode: Option<BlockExportRemoveMode>) -> RemoveMode {
    match mode {
        Some(BlockExportRemoveMode::Hard) => RemoveMode::Hard,
        Some(BlockExportRemoveMode::Safe) | None => RemoveMode::Safe,
    }
}

fn common(job_id: Option<String>, speed: Option<i64>, finalize: Option<bool>, dismiss: Option<bool>) -> CommonArgs {
    CommonArgs {
        job_id,
        speed: speed.unwrap_or(0),
        auto_finalize: finalize.unwrap_or(true),
        auto_dismiss: dismiss.unwrap_or(true),
    }
}

/// A value of one of the block layer's enumerations, by its name on the wire.
fn named<T: Copy>(name: &str, parameter: &str, names: &[(&str, T)]) -> Result<T> {
    let found = names.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
    found.ok_or_else(|| err!("Parameter '{parameter}' does not accept value '{name}'"))
}

fn on_error(value: Option<BlockdevOnError>, parameter: &str) -> Result<OnError> {
    named(value.map_or("report", |v| v.as_str()), parameter, OnError::NAMES)
}

fn write_blocking(mode: Option<MirrorCopyMode>) -> bool {
    mode == Some(MirrorCopyMode::WriteBlocking)
}

/// What `drive-backup` and `blockdev-backup` have in common: the schema's base structure, whose members the generator puts
/// into both types.
macro_rules! backup_args {
    ($a:ident) => {{
        refuse(&[
            ("bitmap", $a.bitmap.is_some() || $a.bitmap_mode.is_some()),
            ("compress", $a.compress == Some(true)),
            ("filter-node-name", $a.filter_node_name.is_some()),
            ("discard-source", $a.discard_source == Some(true)),
            ("x-perf", $a.x_perf.is_some()),
        ])?;
        BackupArgs {
            common: common($a.job_id, $a.speed, $a.auto_finalize, $a.auto_dismiss),
            on_source_error: on_error($a.on_source_error, "on-source-error")?,
            on_target_error: on_error($a.on_target_error, "on-target-error")?,
            ..BackupArgs::new(&$a.device, named($a.sync.as_str(), "sync", SyncMode::NAMES)?)
        }
    }};
}

fn jobs(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::DriveMirror>(async |vm: Ctx, a: DriveMirror| {
        let args = MirrorArgs {
            common: common(a.job_id, a.speed, a.auto_finalize, a.auto_dismiss),
            replaces: a.replaces,
            granularity: a.granularity.unwrap_or(0),
            buf_size: a.buf_size.unwrap_or(0),
            on_source_error: on_error(a.on_source_error, "on-source-error")?,
            on_target_error: on_error(a.on_target_error, "on-target-error")?,
            unmap: a.unmap.unwrap_or(true),
            write_blocking: write_blocking(a.copy_mode),
            ..MirrorArgs::new(&a.device, named(a.sync.as_str(), "sync", SyncMode::NAMES)?)
        };
        let mode = named(a.mode.unwrap_or(NewImageMode::AbsolutePaths).as_str(), "mode", NewImage::NAMES)?;
        job_commands::drive_mirror(&vm.graph, args, &a.target, a.format.as_deref(), mode, a.node_name.as_deref()).await
    });
    registry.register::<cmd::BlockdevMirror>(async |vm: Ctx, a: cmd::BlockdevMirror| {
        if a.filter_node_name.is_some() {
            bail!("Parameter 'filter-node-name' is unexpected");
        }
        let args = MirrorArgs {
            common: common(a.job_id, a.speed, a.auto_finalize, a.auto_dismiss),
            replaces: a.replaces,
            granularity: a.granularity.unwrap_or(0),
            buf_size: a.buf_size.unwrap_or(0),
            on_source_error: on_error(a.on_source_error, "on-source-error")?,
            on_target_error: on_error(a.on_target_error, "on-target-error")?,
            write_blocking: write_blocking(a.copy_mode),
            ..MirrorArgs::new(&a.device, named(a.sync.as_str(), "sync", SyncMode::NAMES)?)
        };
        job_commands::blockdev_mirror(&vm.graph, args, &a.target).await
    });
    registry.register::<cmd::DriveBackup>(async |vm: Ctx, a: DriveBackup| {
        let args = backup_args!(a);
        let mode = named(a.mode.unwrap_or(NewImageMode::AbsolutePaths).as_str(), "mode", NewImage::NAMES)?;
        backup::drive_backup(&vm.graph, args, &a.target, a.format.as_deref(), mode).await
    });
    registry.register::<cmd::BlockdevBackup>(async |vm: Ctx, a: BlockdevBackup| {
        let args = backup_args!(a);
        backup::blockdev_backup(&vm.graph, args, &a.target).await
    });
}

fn chain_jobs(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::BlockCommit>(async |vm: Ctx, a: cmd::BlockCommit| {
        let unsupported = [
            ("filter-node-name", a.filter_node_name.is_some()),
            ("backing-mask-protocol", a.backing_mask_protocol == Some(true)),
        ];
        refuse(&unsupported)?;
        let args = CommitArgs {
            common: common(a.job_id, a.speed, a.auto_finalize, a.auto_dismiss),
            device: a.device,
            top: layer(a.top_node, a.top, "top")?,
            base: layer(a.base_node, a.base, "base")?,
            backing_file: a.backing_file,
            on_error: on_error(a.on_error, "on-error")?,
        };
        chain::block_commit(&vm.graph, args).await
    });
    registry.register::<cmd::BlockStream>(async |vm: Ctx, a: cmd::BlockStream| {
        let unsupported = [
            ("bottom", a.bottom.is_some()),
            ("filter-node-name", a.filter_node_name.is_some()),
            ("backing-mask-protocol", a.backing_mask_protocol == Some(true)),
        ];
        refuse(&unsupported)?;
        let args = StreamArgs {
            common: common(a.job_id, a.speed, a.auto_finalize, a.auto_dismiss),
            device: a.device,
            base: layer(a.base_node, a.base, "base")?,
            backing_file: a.backing_file,
            on_error: on_error(a.on_error, "on-error")?,
        };
        chain::block_stream(&vm.graph, args).await
    });
}

fn layer(node: Option<String>, file: Option<String>, parameter: &str) -> Result<Option<LayerName>> {
    match (node, file) {
        (Some(_), Some(_)) => bail!("'{parameter}-node' and '{parameter}' cannot be specified at the same time"),
        (Some(node), None) => Ok(Some(LayerName::Node(node))),
        (None, file) => Ok(file.map(LayerName::File)),
    }
}

/// Arguments that this program does not have are refused, not ignored.
fn refuse(given: &[(&str, bool)]) -> Result<()> {
    match given.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(err!("Parameter '{name}' is unexpected")),
        None => Ok(()),
    }
}

/// What a job query answers, checked by the schema.
fn typed<T: Wire>(value: Value) -> Result<T> {
    visit::from_json(value)
}

fn job_control(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::QueryJobs>(async |vm: Ctx, _| typed::<Vec<JobInfo>>(Jobs::of(&vm.graph).query_jobs()));
    registry.register::<cmd::QueryBlockJobs>(async |vm: Ctx, _| {
        typed::<Vec<BlockJobInfo>>(Jobs::of(&vm.graph).query_block_jobs())
    });
    registry.register::<cmd::BlockJobCancel>(async |vm: Ctx, a: cmd::BlockJobCancel| {
        Jobs::of(&vm.graph).block_job_cancel(&a.device, a.force.unwrap_or(false))
    });
    registry.register::<cmd::BlockJobPause>(async |vm: Ctx, a: cmd::BlockJobPause| {
        Jobs::of(&vm.graph).block_job_pause(&a.device)
    });
    registry.register::<cmd::BlockJobResume>(async |vm: Ctx, a: cmd::BlockJobResume| {
        Jobs::of(&vm.graph).block_job_resume(&a.device)
    });
    registry.register::<cmd::BlockJobComplete>(async |vm: Ctx, a: cmd::BlockJobComplete| {
        Jobs::of(&vm.graph).block_job_complete(&a.device)
    });
    registry.register::<cmd::BlockJobSetSpeed>(async |vm: Ctx, a: cmd::BlockJobSetSpeed| {
        Jobs::of(&vm.graph).block_job_set_speed(&a.device, a.speed)
    });
    registry.register::<cmd::BlockJobFinalize>(async |vm: Ctx, a: cmd::BlockJobFinalize| {
        Jobs::of(&vm.graph).block_job_finalize(&a.id)
    });
    registry.register::<cmd::BlockJobDismiss>(async |vm: Ctx, a: cmd::BlockJobDismiss| {
        Jobs::of(&vm.graph).block_job_dismiss(&a.id)
    });
    registry.register::<cmd::JobCancel>(async |vm: Ctx, a: cmd::JobCancel| Jobs::of(&vm.graph).job_cancel(&a.id));
    registry.register::<cmd::JobPause>(async |vm: Ctx, a: cmd::JobPause| Jobs::of(&vm.graph).job_pause(&a.id));
    registry.register::<cmd::JobResume>(async |vm: Ctx, a: cmd::JobResume| Jobs::of(&vm.graph).job_resume(&a.id));
    registry.register::<cmd::JobComplete>(async |vm: Ctx, a: cmd::JobComplete| Jobs::of(&vm.graph).job_complete(&a.id));
    registry.register::<cmd::JobFinalize>(async |vm: Ctx, a: cmd::JobFinalize| Jobs::of(&vm.graph).job_finalize(&a.id));
    registry.register::<cmd::JobDismiss>(async |vm: Ctx, a: cmd::JobDismiss| Jobs::of(&vm.graph).job_dismiss(&a.id));
}
