//! How devices find the backends that users name.

use std::{
    rc::{Rc, Weak},
    sync::Arc,
};

use lockstep_block::{Backend, GuestDevice, IoStatus, Perm, medium};
use lockstep_event::Local;
use lockstep_hw::core::{
    BackendProvider, CharHandle, DriveEvents, DriveHandle, DriveUser, ErrorAction, NicHandle, NicUser, OnError,
};
use lockstep_net::{NetPeer, NicInfo, PeerError};
use lockstep_qapi::{
    event,
    schema::{BlockErrorAction, IoOperationType, RunState},
};
use lockstep_util::{Result, err};

use crate::{drive, vm::Vm};

/// Has the board find this machine's backends.
pub(super) fn provide(vm: &Rc<Vm>) {
    vm.board.backends.set_provider(Arc::new(Provider { vm: Local::new(Rc::downgrade(vm)) }));
}

struct Provider {
    vm: Local<Weak<Vm>>,
}

impl BackendProvider for Provider {
    fn drive(&self, id: &str, user: &DriveUser) -> Result<DriveHandle> {
        let vm = self.vm()?;
        let backend = match vm.graph.find_backend(id) {
            Some(backend) => backend,
            None => {
                // A node of blockdev-add: the device makes a backend without a name for it.
                let node = vm
                    .graph
                    .find_node(id)
                    .ok_or_else(|| err!("Property '{}.drive' can't find value '{id}'", user.type_name))?;
                let backend = lockstep_block::Backend::new(&vm.graph, None)?;
                backend.insert(&node)?;
                vm.keep(backend.clone());
                backend
            }
        };
        if let Some(other) = backend.device() {
            return Err(err!("Drive '{id}' is already in use by another device ({other})"));
        }
        let mut perm = Perm::CONSISTENT_READ;
        let mut shared = Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED;
        if user.writes {
            perm |= Perm::WRITE;
        }
        if user.resizable {
            shared |= Perm::RESIZE;
        }
        if user.share_rw {
            shared |= Perm::WRITE;
        }
        backend.set_perms(perm, shared)?;
        backend.set_device(Some(&user.name));
        let drive = vm.drives.all().into_iter().find(|d| d.backend.name() == id);
        let policy = |p: drive::OnError, default| match p {
            drive::OnError::Auto => default,
            drive::OnError::Report => OnError::Report,
            drive::OnError::Ignore => OnError::Ignore,
            drive::OnError::Stop => OnError::Stop,
            drive::OnError::Enospc => OnError::Enospc,
        };
        let write_error = drive.as_ref().map_or(OnError::Enospc, |d| policy(d.werror, OnError::Enospc));
        let read_error = drive.as_ref().map_or(OnError::Report, |d| policy(d.rerror, OnError::Report));
        let may_stop = matches!(write_error, OnError::Enospc | OnError::Stop) || read_error == OnError::Stop;
        backend.set_guest(Some(GuestDevice {
            path: user.name.clone(),
            removable: user.removable,
            changeable: user.has_tray,
            tray_open: user.has_tray.then_some(false),
            locked: false,
            io_status: (may_stop && user.reports_errors).then_some(IoStatus::Ok),
        }));
        let events = Events {
            backend: Arc::new(Local::new(Rc::downgrade(&backend))),
            vm: Arc::new(Local::new(Rc::downgrade(&vm))),
            main: vm.main.clone(),
            device: id.to_owned(),
            path: user.path.clone(),
        };
        Ok(DriveHandle { backend: backend.handle(), read_error, write_error, events: Arc::new(events) })
    }

    fn chardev(&self, id: &str, property: &str) -> Result<CharHandle> {
        let vm = self.vm()?;
        if !vm.chardevs.contains(id) {
            return Err(err!("Property '{property}' can't find value '{id}'"));
        }
        let frontend =
            vm.chardevs.attach(id).map_err(|_| err!("Property '{property}' can't take value '{id}', it's in use"))?;
        Ok(CharHandle { frontend, context: vm.main.clone() })
    }

    fn nic(&self, user: &NicUser) -> Result<NicHandle> {
        let vm = self.vm()?;
        let mac = user.mac.unwrap_or_else(|| vm.net.free_mac());
        let name = user.id.clone().unwrap_or_else(|| format!("{}.{}", user.model, vm.net.nic_count()));
        let info = NicInfo { name, model: user.model.to_owned(), mac };
        let peer = vm.net.add_nic(info, user.netdev.as_deref()).map_err(|e| {
            let (model, netdev) = (user.model, user.netdev.as_deref().unwrap_or_default());
            match e {
                PeerError::NotFound => err!("Property '{model}.netdev' can't find value '{netdev}'"),
                PeerError::InUse => err!("Property '{model}.netdev' can't take value '{netdev}', it's in use"),
            }
        })?;
        Ok(NicHandle { peer, mac })
    }

    fn release_nic(&self, peer: &NetPeer) {
        if let Ok(vm) = self.vm() {
            vm.net.remove_nic(peer);
        }
    }
}

impl Provider {
    fn vm(&self) -> Result<Rc<Vm>> {
        self.vm.get().upgrade().ok_or_else(|| err!("the machine is gone"))
    }
}

/// Tells users of a drive's troubles.
struct Events {
    vm: Arc<Local<Weak<Vm>>>,
    backend: Arc<Local<Weak<Backend>>>,
    main: lockstep_event::ContextHandle,
    device: String,
    path: String,
}

impl DriveEvents for Events {
    fn io_error(&self, is_read: bool, action: ErrorAction, errno: i32) {
        let (vm, device, path) = (self.vm.clone(), self.device.clone(), self.path.clone());
        self.main.spawn(move || async move {
            let Some(vm) = vm.get().upgrade() else { return };
            vm.emit::<event::BlockIoError>(&event::BlockIoError {
                qom_path: path,
                device: device.clone(),
                node_name: vm.graph.find_backend(&device).and_then(|b| b.node()).map(|n| n.name().to_owned()),
                operation: if is_read { IoOperationType::Read } else { IoOperationType::Write },
                action: match action {
                    ErrorAction::Report => BlockErrorAction::Report,
                    ErrorAction::Ignore => BlockErrorAction::Ignore,
                    ErrorAction::Stop => BlockErrorAction::Stop,
                },
                nospace: Some(errno == libc::ENOSPC),
                reason: {
                    let e = std::io::Error::from_raw_os_error(errno);
                    lockstep_util::Error::from(e).message().to_owned()
                },
            });
            if action == ErrorAction::Stop {
                let status = if errno == libc::ENOSPC { IoStatus::NoSpace } else { IoStatus::Failed };
                if let Some(backend) = vm.graph.find_backend(&device) {
                    backend.update_guest(|g| g.io_status = g.io_status.map(|_| status));
                }
                vm.stop(RunState::IoError).await;
            }
        });
    }

    fn tray_moved(&self, open: bool) {
        let (vm, backend) = (self.vm.clone(), self.backend.clone());
        self.main.post(move || {
            if let (Some(vm), Some(backend)) = (vm.get().upgrade(), backend.get().upgrade()) {
                backend.update_guest(|guest| guest.tray_open = guest.tray_open.map(|_| open));
                medium::tray_moved(&vm.graph, &backend, open);
            }
        });
    }

    fn tray_locked(&self, locked: bool) {
        self.show(move |guest| guest.locked = locked);
    }
}

impl Events {
    /// Changes what users are shown of the device.
    fn show(&self, change: impl FnOnce(&mut GuestDevice) + Send + 'static) {
        let backend = self.backend.clone();
        self.main.post(move || {
            if let Some(backend) = backend.get().upgrade() {
                backend.update_guest(change);
            }
        });
    }
}
