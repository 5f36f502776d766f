//! Devices, networks, character devices and objects that come and go; keys and the screen.

use std::rc::Rc;

use lockstep_chardev::options::describe;
use lockstep_qapi::{
    cli::{self, Parsed},
    cmd, opts,
    schema::SetPasswordAction,
};
use lockstep_util::{Error, Result, bail, err};

use super::{
    Args, HmpCommand,
    args::Param::{Flag, OptionalWord, Rest, Value, Word},
    hinted, prefixed,
};
use crate::{machine, objects::LocalFuture, qmp, vm::Vm};

pub(super) static COMMANDS: &[HmpCommand] = &[
    HmpCommand { names: "chardev-add", params: &[Rest("args")], usage: "args", help: "add chardev", run: chardev_add },
    HmpCommand {
        names: "chardev-change",
        params: &[Word("id"), Rest("args")],
        usage: "id args",
        help: "change chardev",
        run: chardev_change,
    },
    HmpCommand {
        names: "chardev-remove",
        params: &[Word("id")],
        usage: "id",
        help: "remove chardev",
        run: chardev_remove,
    },
    HmpCommand {
        names: "chardev-send-break",
        params: &[Word("id")],
        usage: "id",
        help: "send a break on chardev",
        run: chardev_send_break,
    },
    HmpCommand {
        names: "device_add",
        params: &[Rest("device")],
        usage: "driver[,prop=value][,...]",
        help: "add device, like -device on the command line",
        run: device_add,
    },
    HmpCommand { names: "device_del", params: &[Word("id")], usage: "device", help: "remove device", run: device_del },
    HmpCommand {
        names: "netdev_add",
        params: &[Rest("netdev")],
        usage: "[user|tap|socket|stream|dgram|bridge],id=str[,prop=value][,...]",
        help: "add host network device",
        run: netdev_add,
    },
    HmpCommand {
        names: "netdev_del",
        params: &[Word("id")],
        usage: "id",
        help: "remove host network device",
        run: netdev_del,
    },
    HmpCommand {
        names: "object_add",
        params: &[Rest("object")],
        usage: "[qom-type=]type,id=str[,prop=value][,...]",
        help: "create QOM object",
        run: object_add,
    },
    HmpCommand { names: "object_del", params: &[Word("id")], usage: "id", help: "destroy QOM object", run: object_del },
    HmpCommand {
        names: "expire_password",
        params: &[Word("protocol"), Word("time"), Value('d', "display")],
        usage: "protocol time [-d display]",
        help: "set spice/vnc password expire-time",
        run: expire_password,
    },
    HmpCommand {
        names: "screendump",
        params: &[Word("filename"), Flag('f'), OptionalWord("format"), OptionalWord("device")],
        usage: "filename [-f format] [device]",
        help: "save screen into PPM or PNG image 'filename'",
        run: screendump,
    },
    HmpCommand {
        names: "set_password",
        params: &[Word("protocol"), Word("password"), Value('d', "display"), OptionalWord("connected")],
        usage: "protocol password [-d display] [action-if-connected]",
        help: "set spice/vnc password",
        run: set_password,
    },
    HmpCommand {
        names: "sendkey",
        params: &[Word("keys"), OptionalWord("hold-time")],
        usage: "keys [hold_ms]",
        help: "send keys to the VM (e.g. 'sendkey ctrl-alt-f1', default hold time=100 ms)",
        run: sendkey,
    },
    HmpCommand {
        names: "set_link",
        params: &[Word("name"), Word("up")],
        usage: "name on|off",
        help: "change the link status of a network adapter",
        run: set_link,
    },
];

fn chardev_add<'a>(vm: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let described = opts::parse(args.word("args"), Some("backend")).and_then(|o| describe(&o)).map_err(prefixed)?;
        vm.add_chardev(described).await.map_err(prefixed)
    })
}

fn chardev_change<'a>(vm: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let id = args.word("id");
        let text = format!("{},id={id}", args.word("args"));
        let described = opts::parse(&text, Some("backend")).and_then(|o| describe(&o)).map_err(prefixed)?;
        vm.chardevs.change(id, described.backend).await.map(drop).map_err(prefixed)
    })
}

fn chardev_remove<'a>(vm: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move { vm.chardevs.remove(args.word("id")).map_err(prefixed) })
}

fn chardev_send_break<'a>(vm: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move { vm.chardevs.send_break(args.word("id")).map_err(prefixed) })
}

fn device_add<'a>(vm: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move { machine::add_device_text(vm, args.word("device")).map_err(prefixed) })
}

fn device_del<'a>(vm: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move { machine::remove_device(vm, args.word("id")).map_err(prefixed) })
}

fn netdev_add<'a>(vm: &'a Rc<Vm>, args: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        match cli::netdev(args.word("netdev")).map_err(prefixed)? {
            Parsed::Value(options, _) => vm.net.add_netdev(&options).await.map_err(prefixed),
            Parsed::Help(_) => {
                out.push_str(&crate::cmdline::help::netdevs());
                Ok(())
            }
        }
    })
}

fn netdev_del<'a>(vm: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move { vm.net.remove_netdev(args.word("id")).await.map_err(prefixed) })
}

fn object_add<'a>(vm: &'a Rc<Vm>, args: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        match cli::object_add(args.word("object")).map_err(prefixed)? {
            Parsed::Value(options, _) => vm.objects.add(vm, options).await.map_err(prefixed),
            Parsed::Help(kind) => {
                out.push_str(&crate::cmdline::help::objects(kind.as_deref())?);
                Ok(())
            }
        }
    })
}

fn object_del<'a>(vm: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move { vm.objects.delete(args.word("id")).await.map_err(prefixed) })
}

fn screendump<'a>(vm: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let format = match (args.flag('f'), args.get("format")) {
            (true, Some("png")) => true,
            (true, Some("ppm")) | (false, _) => false,
            (true, other) => {
                let value = other.unwrap_or_default();
                return Err(prefixed(err!("Parameter 'format' does not accept value '{value}'")));
            }
        };
        let device = if args.flag('f') { args.get("device") } else { args.get("format") };
        qmp::screen::dump(vm, args.word("filename"), device, None, format).map_err(prefixed)
    })
}

fn sendkey<'a>(vm: &'a Rc<Vm>, args: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let keys = match qmp::input::parse_keys(args.word("keys")) {
            Ok(keys) => keys,
            Err(e) => {
                out.push_str(&format!("{}\n", e.message()));
                return Ok(());
            }
        };
        let hold_time = match args.get("hold-time").map(str::parse) {
            None => None,
            Some(Ok(ms)) => Some(ms),
            Some(Err(_)) => bail!("invalid hold time"),
        };
        vm.key_queue.press(vm, &cmd::SendKey { keys, hold_time });
        Ok(())
    })
}

fn set_link<'a>(vm: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let up = match args.word("up") {
            "on" => true,
            "off" => false,
            _ => return Err(Error::new("Expected 'on' or 'off'\nTry \"help set_link\" for more information")),
        };
        vm.net.set_link(args.word("name"), up).map_err(prefixed)
    })
}

/// Only VNC has passwords here.
fn check_protocol(args: &Args) -> Result<()> {
    match args.word("protocol") {
        "vnc" => Ok(()),
        other => bail!("invalid parameter value: {other}"),
    }
}

fn set_password<'a>(vm: &'a Rc<Vm>, args: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let action = |text| SetPasswordAction::from_name(text).ok_or_else(|| err!("invalid parameter value: {text}"));
        let set = || {
            check_protocol(args)?;
            let connected = args.get("connected").map(action).transpose()?;
            qmp::vnc::set_password(vm, args.get("display"), args.word("password").to_owned(), connected)
        };
        set().map_err(|e| hinted(&e, out))
    })
}

fn expire_password<'a>(vm: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        check_protocol(args).map_err(prefixed)?;
        vm.displays.expire_password(args.get("display"), args.word("time")).map_err(prefixed)
    })
}
