//! Devices of a session.
//!
//! A device's durable cursor is a field of a hash; the script that moves it also mirrors it to the device's consumer group
//! on the session's log, where operators see it. Moving is idempotent, so a lost answer may be asked for again.

use super::Redis;
use super::keys::Tag;
use super::link::Failure;
use super::read::{broken, number, parse, text};
use crate::{Device, Error, MIRROR_EVERY, Refusal};
use ::redis::{Value, cmd};
use everthread_protocol::limits::{DEVICE_IDLE_MS, DEVICES_MAX};
use everthread_protocol::{Cursor, DeviceId, Epoch, Millis, Seq, SessionKey};

/// Sessions that one request asks for the cursor of a device.
const ACKED_BATCH: usize = 512;

impl Redis {
    /// See [`crate::Store::ack`].
    pub(super) async fn ack_device(
        &self,
        key: &SessionKey,
        device: &DeviceId,
        cursor: Cursor,
    ) -> Result<Option<Cursor>, Error> {
        let keys = &self.inner.keys;
        let (meta, devices, log) = (keys.meta(key), keys.devices(key), keys.log(key));
        let (epoch, seq) = (cursor.epoch.to_string(), cursor.seq.to_string());
        let (idle, most) = (DEVICE_IDLE_MS.to_string(), DEVICES_MAX.to_string());
        let every = MIRROR_EVERY.as_millis().to_string();
        let args = [device.as_str(), &epoch, &seq, &idle, &most, &every].map(str::as_bytes);
        let script = &self.inner.scripts.ack;
        let answer = self.at(Tag::Session(key)).script(script, &[&meta, &devices, &log], &args).await;
        let answer: Vec<Value> = answer.map_err(Failure::of_write)?;
        let word = answer.first().ok_or_else(|| broken("an empty answer to an acknowledgement"))?;
        match (text(word)?, &answer[1..]) {
            ("ok", [epoch, seq]) => Ok(Some(Cursor { epoch: Epoch(number(epoch)?), seq: Seq(number(seq)?) })),
            ("foreign", []) => Ok(None),
            ("none", []) => Err(Refusal::NoSession.into()),
            (other, _) => Err(broken(&format!("an unknown answer to an acknowledgement: {other:?}"))),
        }
    }

    /// See [`crate::Store::devices`].
    pub(super) async fn list_devices(&self, key: &SessionKey) -> Result<Vec<Device>, Error> {
        let mut request = ::redis::pipe();
        request.cmd("TIME");
        request.cmd("HGETALL").arg(self.inner.keys.devices(key));
        let (time, fields): (Vec<Value>, Value) =
            self.ranges(Tag::Session(key)).pipeline(&request).await.map_err(Failure::of_read)?;
        let now = millis(&time)?;
        let mut devices = Vec::new();
        for (device, value) in pairs(&fields)? {
            devices.extend(device_of(parse(text(device)?)?, text(value)?, now)?);
        }
        devices.sort_by(|a, b| a.device.cmp(&b.device));
        Ok(devices)
    }

    /// See [`crate::Store::device_in`].
    pub(super) async fn device_in_many(
        &self,
        keys: &[SessionKey],
        device: &DeviceId,
    ) -> Result<Vec<Option<Device>>, Error> {
        let Some(first) = keys.first() else { return Ok(Vec::new()) };
        // One clock for all of them: in a cluster, that of the first.
        let time = cmd("TIME");
        let way = self.ranges(Tag::Session(first));
        let asked = self.each_session(ACKED_BATCH, keys, |key| {
            let mut request = cmd("HGET");
            request.arg(self.inner.keys.devices(key)).arg(device.as_str());
            request
        });
        let (time, fields) = tokio::join!(way.command::<Vec<Value>>(&time), asked);
        let now = millis(&time.map_err(Failure::of_read)?)?;
        let device = |field: Result<Value, Error>| match &field? {
            Value::Nil => Ok(None),
            value => device_of(device.clone(), text(value)?, now),
        };
        fields.into_iter().map(device).collect()
    }

    /// See [`crate::Store::forget_device`].
    pub(super) async fn drop_device(&self, key: &SessionKey, device: &DeviceId) -> Result<bool, Error> {
        let (devices, log) = (self.inner.keys.devices(key), self.inner.keys.log(key));
        let script = &self.inner.scripts.forget_device;
        let args = [device.as_str().as_bytes()];
        self.at(Tag::Session(key)).script(script, &[&devices, &log], &args).await.map_err(Failure::of_write)
    }
}

/// A device from its field, unless it was idle for too long.
fn device_of(device: DeviceId, field: &str, now: Millis) -> Result<Option<Device>, Error> {
    let mut parts = field.split(' ');
    let (Some(cursor), Some(at)) = (parts.next(), parts.next()) else { return Err(broken("a device")) };
    let device = Device { device, cursor: parse(cursor)?, at: Millis(parse(at)?) };
    Ok((!device.is_idle(now)).then_some(device))
}

/// The server's clock.
fn millis(time: &[Value]) -> Result<Millis, Error> {
    let [seconds, micros] = time else { return Err(broken("a time that is none")) };
    Ok(Millis(number(seconds)? * 1000 + number(micros)? / 1000))
}

/// Fields and values of a hash.
fn pairs(hash: &Value) -> Result<Vec<(&Value, &Value)>, Error> {
    match hash {
        Value::Map(pairs) => Ok(pairs.iter().map(|(field, value)| (field, value)).collect()),
        Value::Array(flat) => Ok(flat.chunks_exact(2).map(|pair| (&pair[0], &pair[1])).collect()),
        _ => Err(broken("something else where a hash should be")),
    }
}
