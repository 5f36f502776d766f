//! What the program's command line and screen are.

use lockstep_qapi::{Registry, cmd, schema::*};
use lockstep_util::err;

use super::Ctx;
use crate::cmdline::parameters;

pub fn register(registry: &mut Registry<Ctx>) {
    registry.register::<cmd::QueryCommandLineOptions>(async |_: Ctx, a: cmd::QueryCommandLineOptions| {
        let all = parameters::all();
        match a.option {
            None => Ok(all),
            Some(name) => match all.into_iter().find(|o| o.option == name) {
                Some(option) => Ok(vec![option]),
                None => Err(err!("invalid option name: {name}")),
            },
        }
    });
    registry.register::<cmd::QueryDisplayOptions>(async |_, _| {
        Ok(DisplayOptions {
            full_screen: None,
            window_close: None,
            show_cursor: None,
            gl: None,
            branch: DisplayOptionsBranch::None,
        })
    });
    registry.offer_only(&[DisplayType::None]);
}
