//! What clients ask of the guest, and what they measure: samples, and the number of operations that they took.
use crate::samples::Samples;
use lockstep_compat_tests::traffic::{self, ECHO_PORT, Http, KeyValues, PATIENCE};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

const ECHO_BYTES: usize = 64;
const PUT_BYTES: usize = 1000;
const MEGA: f64 = 1e6;

/// Times of round trips of 64 bytes on one connection.
pub fn echo(count: usize) -> io::Result<(Samples, f64)> {
    let mut stream = traffic::connect(ECHO_PORT, PATIENCE)?;
    let (sent, mut got) = ([0x5a; ECHO_BYTES], [0; ECHO_BYTES]);
    let mut samples = Samples::default();
    for number in 0..count + count / 10 {
        let start = Instant::now();
        stream.write_all(&sent)?;
        stream.read_exact(&mut got)?;
        // The first ones warm up caches and the connection.
        if number >= count / 10 {
            samples.push(start.elapsed());
        }
    }
    Ok((samples, (count + count / 10) as f64))
}

/// Megabytes (10^6) a second of a transfer that lasts about `time`, five times.
pub fn rate(transfer: fn(u64, u64) -> io::Result<Duration>, time: Duration) -> io::Result<(Samples, f64)> {
    let mut bytes = 2 << 20;
    let mut took = transfer(bytes, 1)?;
    let mut all = bytes;
    for seed in 2..8 {
        let wanted = bytes as f64 * time.as_secs_f64() / took.as_secs_f64().max(1e-4);
        // Sizes grow step by step: how the first megabytes went says little about the rest.
        bytes = (wanted as u64).clamp(1 << 20, bytes * 8).min(512 << 20);
        if took > time / 2 {
            break;
        }
        took = transfer(bytes, seed)?;
        all += bytes;
    }
    let runs = (0..5).map(|seed| Ok(bytes as f64 / MEGA / transfer(bytes, seed)?.as_secs_f64()));
    let runs = Samples(runs.collect::<io::Result<_>>()?);
    Ok((runs, (all + 5 * bytes) as f64 / MEGA))
}

/// Connections a second, each for one request, by `clients` at once; five times.
pub fn connections(clients: usize, time: Duration) -> io::Result<(Samples, f64)> {
    let rates = Samples((0..5).map(|_| connection_rate(clients, time)).collect::<io::Result<_>>()?);
    let count = rates.0.iter().sum::<f64>() * time.as_secs_f64();
    Ok((rates, count))
}

fn connection_rate(clients: usize, time: Duration) -> io::Result<f64> {
    let end = Instant::now() + time;
    let client = move || -> io::Result<u64> {
        let mut count = 0;
        while Instant::now() < end {
            Http::open()?.get("/")?;
            count += 1;
        }
        Ok(count)
    };
    let threads: Vec<_> = (0..clients).map(|_| std::thread::spawn(client)).collect();
    let counts = threads.into_iter().map(|thread| thread.join().expect("no panic"));
    Ok(counts.sum::<io::Result<u64>>()? as f64 / time.as_secs_f64())
}

/// Times of durable writes of 1,000 bytes, one after another; all are read back.
pub fn puts(time: Duration) -> io::Result<(Samples, f64)> {
    let (mut http, mut pairs, mut samples) = (Http::open()?, KeyValues::default(), Samples::default());
    let end = Instant::now() + time;
    while Instant::now() < end {
        let start = Instant::now();
        pairs.put_next(&mut http, PUT_BYTES)?;
        samples.push(start.elapsed());
    }
    let count = samples.0.len() as f64;
    pairs.verify(&mut http)?;
    Ok((samples, count))
}

/// Times of answers that differ between primary and secondary.
pub fn diverging(count: usize) -> io::Result<(Samples, f64)> {
    let mut http = Http::open()?;
    let mut samples = Samples::default();
    for _ in 0..count {
        let start = Instant::now();
        http.get("/random")?;
        samples.push(start.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok((samples, count as f64))
}

/// Times of such answers one right after the other, by several clients at once, and how many a second there were.
pub fn diverging_all_the_time(clients: usize, time: Duration) -> io::Result<(Samples, f64)> {
    let end = Instant::now() + time;
    let client = move || -> io::Result<Vec<Duration>> {
        let (mut http, mut times) = (Http::open()?, Vec::new());
        while Instant::now() < end {
            let start = Instant::now();
            http.get("/random")?;
            times.push(start.elapsed());
        }
        Ok(times)
    };
    let threads: Vec<_> = (0..clients).map(|_| std::thread::spawn(client)).collect();
    let times = threads.into_iter().map(|thread| thread.join().expect("no panic"));
    let times = times.collect::<io::Result<Vec<_>>>()?.concat();
    let rate = times.len() as f64 / time.as_secs_f64();
    Ok((times.into_iter().collect(), rate))
}
