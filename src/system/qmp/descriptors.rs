//! Descriptors that clients send, by name and in sets.

use lockstep_qapi::{Registry, cmd, schema::*};
use lockstep_util::{Result, err, fds};

use super::Ctx;

pub fn register(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::Getfd>(async |_: Ctx, a: cmd::Getfd| client()?.name(&a.fdname));
    registry.register::<cmd::Closefd>(async |_: Ctx, a: cmd::Closefd| client()?.close(&a.fdname));
    registry.register::<cmd::AddFd>(async |_: Ctx, a: cmd::AddFd| {
        let fd = client()?.receive()?;
        let (fdset_id, fd) = fds::add_to_set(fd, a.fdset_id, a.opaque)?;
        Ok(AddfdInfo { fdset_id, fd: fd.into() })
    });
    registry.register::<cmd::RemoveFd>(async |_: Ctx, a: cmd::RemoveFd| fds::remove_from_set(a.fdset_id, a.fd));
    registry.register::<cmd::QueryFdsets>(async |_: Ctx, _| {
        let info = |(fdset_id, fds): fds::SetInfo| FdsetInfo {
            fdset_id,
            fds: fds.into_iter().map(|(fd, opaque)| FdsetFdInfo { fd: fd.into(), opaque }).collect(),
        };
        Ok(fds::sets().into_iter().map(info).collect())
    });
}

/// Whoever asked.
pub fn client() -> Result<fds::Client> {
    fds::Client::current().ok_or_else(|| err!("No file descriptor supplied via SCM_RIGHTS"))
}
