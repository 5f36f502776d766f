//! Displays for VNC viewers.

use lockstep_qapi::{Registry, cmd, event, schema::*};
use lockstep_util::{Result, bail};
use lockstep_vnc::Display;

use super::Ctx;
use crate::vnc;

pub(super) fn register(registry: &mut Registry<Ctx>) {
    registry.announce::<event::VncConnected>();
    registry.announce::<event::VncInitialized>();
    registry.announce::<event::VncDisconnected>();
    registry.register::<cmd::QueryVnc>(async |vm: Ctx, _| Ok(info(vm.displays.find(None).as_deref())));
    registry.register::<cmd::QueryVncServers>(async |vm: Ctx, _| {
        // QEMU shows the newest first, and of its addresses too.
        Ok(vm.displays.list().iter().rev().map(|display| server(display)).collect())
    });
    registry.register::<cmd::SetPassword>(async |vm: Ctx, a: SetPasswordOptions| {
        let SetPasswordOptionsBranch::Vnc(vnc) = a.branch;
        set_password(&vm, vnc.display.as_deref(), a.password, a.connected)
    });
    registry.register::<cmd::ExpirePassword>(async |vm: Ctx, a: ExpirePasswordOptions| {
        let ExpirePasswordOptionsBranch::Vnc(vnc) = a.branch;
        vm.displays.expire_password(vnc.display.as_deref(), &a.time)
    });
    registry.register::<cmd::ChangeVncPassword>(async |vm: Ctx, a: cmd::ChangeVncPassword| {
        vm.displays.set_password(None, a.password)
    });
}

/// Sets a display's password. Viewers that are there stay.
///
/// # Errors
/// When something else shall happen to them, there is no such display, or it has no passwords.
pub fn set_password(
    vm: &Ctx,
    display: Option<&str>,
    password: String,
    connected: Option<SetPasswordAction>,
) -> Result<()> {
    if connected.is_some_and(|action| action != SetPasswordAction::Keep) {
        bail!("parameter 'connected' must be 'keep' when 'protocol' is 'vnc'");
    }
    vm.displays.set_password(display, password)
}

fn info(display: Option<&Display>) -> VncInfo {
    let Some((display, end)) = display.and_then(|d| Some((d, d.servers().into_iter().next()?))) else {
        return VncInfo { enabled: false, ..VncInfo::default() };
    };
    let end = vnc::basic(&end);
    VncInfo {
        enabled: true,
        host: Some(end.host),
        family: Some(end.family),
        service: Some(end.service),
        auth: Some(vnc::authentication(display.needs_password()).into()),
        clients: Some(display.clients().iter().rev().map(vnc::client).collect()),
    }
}

fn server(display: &Display) -> VncInfo2 {
    let auth = if display.needs_password() { VncPrimaryAuth::Vnc } else { VncPrimaryAuth::None };
    let servers = display.servers();
    let servers = servers.iter().rev().map(|end| {
        let VncBasicInfo { host, service, family, websocket } = vnc::basic(end);
        VncServerInfo2 { host, service, family, websocket, auth, vencrypt: None }
    });
    VncInfo2 {
        id: display.id().to_owned(),
        server: servers.collect(),
        clients: display.clients().iter().rev().map(vnc::client).collect(),
        auth,
        vencrypt: None,
        display: None,
    }
}
