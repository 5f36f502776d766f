//! `guest-image OUT.qcow2 [ADDRESS/PREFIX GATEWAY]`: makes a disk image that boots the test guest.
use lockstep_compat_tests::guest_image::GuestImage;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((out, image)) = parse(&arguments) else {
        eprintln!("usage: guest-image OUT.qcow2 [ADDRESS/PREFIX GATEWAY]");
        return ExitCode::from(2);
    };
    match image.create(Path::new(out)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-image: {out}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: &[String]) -> Option<(&str, GuestImage)> {
    match arguments {
        [out] => Some((out, GuestImage::default())),
        [out, address, gateway] => {
            let (address, prefix) = address.split_once('/')?;
            let octets = |text: &str| text.parse::<Ipv4Addr>().ok().map(|address| address.octets());
            let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
            Some((
                out,
                GuestImage { address: octets(address)?, gateway: octets(gateway)?, prefix, ..GuestImage::default() },
            ))
        }
        _ => None,
    }
}
