//! Migration.

use std::rc::Rc;

use lockstep_migration::MigrateArguments;
use lockstep_util::{Result, err};
use serde_json::Value;

use super::{
    Args, HmpCommand,
    args::Param::{Flag, Word},
    prefixed,
};
use crate::{objects::LocalFuture, vm::Vm};

pub(super) static COMMANDS: &[HmpCommand] = &[
    HmpCommand {
        names: "migrate",
        params: &[Flag('d'), Flag('r'), Word("uri")],
        usage: "[-d] [-r] uri",
        help: "migrate to URI (using -d to not wait for completion)\n\t\t\t -r to resume a paused postcopy migration",
        run: migrate,
    },
    HmpCommand {
        names: "migrate_cancel",
        params: &[],
        usage: "",
        help: "cancel the current VM migration",
        run: migrate_cancel,
    },
    HmpCommand {
        names: "migrate_continue",
        params: &[Word("state")],
        usage: "state",
        help: "Continue migration from the given paused state",
        run: migrate_continue,
    },
    HmpCommand {
        names: "migrate_incoming",
        params: &[Word("uri")],
        usage: "uri",
        help: "Continue an incoming migration from an -incoming defer",
        run: migrate_incoming,
    },
    HmpCommand {
        names: "migrate_set_capability",
        params: &[Word("capability"), Word("state")],
        usage: "capability state",
        help: "Enable/Disable the usage of a capability for migration",
        run: set_capability,
    },
    HmpCommand {
        names: "x_colo_lost_heartbeat",
        params: &[],
        usage: "",
        help: "Tell COLO that heartbeat is lost,\n\t\t\ta failover or takeover is needed.",
        run: colo_lost_heartbeat,
    },
];

pub(super) static INFO: &[HmpCommand] = &[
    HmpCommand {
        names: "migrate_capabilities",
        params: &[],
        usage: "",
        help: "show current migration capabilities",
        run: info_capabilities,
    },
    HmpCommand {
        names: "migrate_parameters",
        params: &[],
        usage: "",
        help: "show current migration parameters",
        run: info_parameters,
    },
];

/// The parameters that are shown, and their units.
const PARAMETERS: [(&str, &str); 25] = [
    ("announce-initial", " ms"),
    ("announce-max", " ms"),
    ("announce-rounds", ""),
    ("announce-step", " ms"),
    ("throttle-trigger-threshold", ""),
    ("cpu-throttle-initial", ""),
    ("cpu-throttle-increment", ""),
    ("cpu-throttle-tailslow", ""),
    ("max-cpu-throttle", ""),
    ("tls-creds", ""),
    ("tls-hostname", ""),
    ("max-bandwidth", " bytes/second"),
    ("avail-switchover-bandwidth", " bytes/second"),
    ("downtime-limit", " ms"),
    ("x-checkpoint-delay", " ms"),
    ("multifd-channels", ""),
    ("multifd-compression", ""),
    ("zero-page-detection", ""),
    ("xbzrle-cache-size", " bytes"),
    ("max-postcopy-bandwidth", ""),
    ("tls-authz", ""),
    ("x-vcpu-dirty-limit-period", " ms"),
    ("vcpu-dirty-limit", " MB/s"),
    ("mode", ""),
    ("direct-io", ""),
];

fn migrate<'a>(vm: &'a Rc<Vm>, args: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let uri = Some(args.word("uri").to_owned());
        let arguments = MigrateArguments { uri, channels: None, resume: args.flag('r') };
        vm.migration()?.migrate(&arguments).map_err(prefixed)?;
        if !args.flag('d') {
            out.push_str("terminal does not allow synchronous migration, continuing detached\n");
        }
        Ok(())
    })
}

fn migrate_cancel<'a>(vm: &'a Rc<Vm>, _: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        vm.migration()?.cancel();
        Ok(())
    })
}

fn migrate_continue<'a>(vm: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move { vm.migration()?.go_on(args.word("state")).map_err(prefixed) })
}

fn migrate_incoming<'a>(vm: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move { vm.migration()?.migrate_incoming(Some(args.word("uri")), None, None).map_err(prefixed) })
}

fn set_capability<'a>(vm: &'a Rc<Vm>, args: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let name = args.word("capability");
        let state = match args.word("state") {
            "on" => true,
            "off" => false,
            _ => return Err(err!("Expected 'on' or 'off'\nTry \"help migrate_set_capability\" for more information")),
        };
        let known = lockstep_qapi::schema::MigrationCapability::from_name(name).is_some();
        if !known {
            return Err(prefixed(err!("invalid parameter value: {name}")));
        }
        vm.migration()?.set_capabilities([(name, state)]).map_err(prefixed)
    })
}

fn colo_lost_heartbeat<'a>(vm: &'a Rc<Vm>, _: &'a Args, _: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move { vm.migration()?.colo_lost_heartbeat().map_err(prefixed) })
}

fn info_parameters<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let all = vm.migration()?.parameters().to_json();
        for (name, unit) in PARAMETERS {
            let value = match &all[name] {
                Value::Null => continue,
                Value::Bool(on) => (if *on { "on" } else { "off" }).to_owned(),
                Value::String(text) if name.starts_with("tls-") => format!("'{text}'"),
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            out.push_str(&format!("{name}: {value}{unit}\n"));
        }
        Ok(())
    })
}

fn info_capabilities<'a>(vm: &'a Rc<Vm>, _: &'a Args, out: &'a mut String) -> LocalFuture<'a, Result<()>> {
    Box::pin(async move {
        let all = vm.migration()?.capabilities().to_json();
        for capability in all.as_array().map_or(&[][..], Vec::as_slice) {
            let on = capability["state"] == Value::Bool(true);
            let name = capability["capability"].as_str().unwrap_or_default();
            out.push_str(&format!("{name}: {}\n", if on { "on" } else { "off" }));
        }
        Ok(())
    })
}
