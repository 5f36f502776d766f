//! A writer of key-value pairs that remembers which writes were acknowledged: those must be there, whatever happened since.
use super::stream::fill;
use super::{Http, http::Response};
use std::collections::BTreeMap;
use std::io;

/// What was written.
#[derive(Default)]
pub struct KeyValues {
    acknowledged: BTreeMap<String, Vec<u8>>,
    /// Sent without an answer: may be there or not, but nothing else.
    in_doubt: BTreeMap<String, Vec<u8>>,
    next: u64,
}

impl KeyValues {
    /// Writes the next pair, with a value of `size` bytes, over `http`.
    ///
    /// # Errors
    /// If the answer does not come or refuses; the pair then is in doubt.
    pub fn put_next(&mut self, http: &mut Http, size: usize) -> io::Result<()> {
        let key = format!("key-{}", self.next);
        let mut value = vec![0; size];
        fill(self.next << 32, 0, &mut value);
        self.next += 1;
        self.in_doubt.insert(key.clone(), value.clone());
        let response = http.request("PUT", &format!("/kv/{key}"), &value)?;
        if response.status != 200 {
            return Err(io::Error::other(format!("PUT {key}: status {}", response.status)));
        }
        self.in_doubt.remove(&key);
        self.acknowledged.insert(key, value);
        Ok(())
    }

    /// Number of acknowledged writes.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// Reads those of the last `count` writes back that were acknowledged.
    ///
    /// # Errors
    /// The first pair that is lost or wrong.
    pub fn verify_latest(&self, http: &mut Http, count: u64) -> io::Result<()> {
        let latest = (self.next.saturating_sub(count)..self.next).map(|number| format!("key-{number}"));
        for (key, value) in latest.filter_map(|key| self.acknowledged.get_key_value(&key)) {
            let response = http.request("GET", &format!("/kv/{key}"), &[])?;
            if response.status != 200 || response.body != *value {
                return Err(lost(key, &response, value));
            }
        }
        Ok(())
    }

    /// Reads everything back.
    ///
    /// # Errors
    /// The first pair that is lost or wrong.
    pub fn verify(&self, http: &mut Http) -> io::Result<()> {
        self.verify_latest(http, u64::MAX)?;
        for (key, value) in &self.in_doubt {
            let response = http.request("GET", &format!("/kv/{key}"), &[])?;
            if response.status != 404 && response.body != *value {
                return Err(io::Error::other(format!("{key} has a value that nobody wrote")));
            }
        }
        Ok(())
    }
}

/// Says what is there instead of an acknowledged value.
fn lost(key: &str, response: &Response, value: &[u8]) -> io::Error {
    let same = response.body.iter().zip(value).take_while(|(a, b)| a == b).count();
    let (lengths, status) = ((response.body.len(), value.len()), response.status);
    let there = &response.body[same..response.body.len().min(same + 32)];
    io::Error::other(format!(
        "{key} was acknowledged, and now: status {status}, {} bytes of {}, equal to byte {same}, there {there:02x?}",
        lengths.0, lengths.1
    ))
}
