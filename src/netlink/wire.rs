//! Netlink's framing: messages and attributes as bytes (`<linux/netlink.h>`), behind the header of generic netlink or that of
//! netfilter's (`<linux/genetlink.h>`, `<linux/netfilter/nfnetlink.h>`).
//!
//! Pure. Knows nothing of what is in the attributes. Never panics on what it reads: input that is cut short is a [`DecodeError`].

use std::fmt;

/// NLM_F_REQUEST.
pub(crate) const REQUEST: u16 = 0x1;
/// NLM_F_ACK.
pub(crate) const ACK: u16 = 0x4;
/// NLM_F_DUMP: NLM_F_ROOT and NLM_F_MATCH.
pub(crate) const DUMP: u16 = 0x300;

const DUMP_INTERRUPTED: u16 = 0x10;
const TYPE_ERROR: u16 = 2;
const TYPE_DONE: u16 = 3;
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;
const HEADER_LEN: usize = 16;
/// `struct genlmsghdr` and `struct nfgenmsg` alike.
const INNER_HEADER_LEN: usize = 4;
const ATTRIBUTE_HEADER_LEN: usize = 4;

/// What the kernel sent is not what its headers promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the length that they announce.
    #[error("cut short in {0}")]
    Truncated(&'static str),
    /// An attribute that must be there is not.
    #[error("without {0}")]
    Missing(&'static str),
    /// An attribute has a length or value that its type does not allow.
    #[error("with an impossible {0}")]
    Value(&'static str),
}

/// Writes one message.
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Begins a message to the generic netlink family `family` that asks for `command`.
    pub(crate) fn generic(family: u16, flags: u16, sequence: u32, command: u8, version: u8) -> Self {
        Self::new(family, flags, sequence, [command, version, 0, 0])
    }

    /// Begins a message of the type `kind` to a subsystem of netfilter (NFNETLINK_V0), about the address family `family`.
    pub(crate) fn netfilter(kind: u16, flags: u16, sequence: u32, family: u8) -> Self {
        Self::new(kind, flags, sequence, [family, 0, 0, 0])
    }

    fn new(kind: u16, flags: u16, sequence: u32, header: [u8; INNER_HEADER_LEN]) -> Self {
        let mut bytes = vec![0; 4]; // The length, filled in by `finish`.
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((REQUEST | flags).to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]); // The port: the kernel knows the sender.
        bytes.extend(header);
        Self { bytes }
    }

    /// Appends the attribute `kind` with `value`, padded to 4 bytes.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(ATTRIBUTE_HEADER_LEN + value.len()).expect("kvip's attributes are short");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Appends a number in host order.
    pub(crate) fn put_u16(&mut self, kind: u16, value: u16) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// Appends a number in host order.
    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_ne_bytes());
    }

    /// Appends a NUL-terminated string.
    pub(crate) fn put_str(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes);
    }

    /// Appends the attribute `kind` that holds what `fill` appends.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.put(kind | NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).expect("kvip's attributes are short");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// Appends attributes that were written before.
    pub(crate) fn put_raw(&mut self, attributes: &[u8]) {
        self.bytes.extend(attributes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The finished message.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("kvip's messages are short");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes
    }
}

/// One message of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply<'a> {
    /// The sequence number of the request that it answers.
    pub(crate) sequence: u32,
    /// What it says.
    pub(crate) body: Body<'a>,
}

/// What a message of an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body<'a> {
    /// The attributes of one object.
    Data(&'a [u8]),
    /// The request is done: 0, or the number of its error, such as 17 for EEXIST.
    End(i32),
    /// The dump was overtaken by a change (NLM_F_DUMP_INTR).
    Interrupted,
}

/// The messages in one datagram from the kernel.
pub(crate) fn replies(mut datagram: &[u8]) -> Result<Vec<Reply<'_>>, DecodeError> {
    let mut replies = Vec::new();
    while !datagram.is_empty() {
        let length = u32_at(datagram, 0, "a message's length")? as usize;
        let message = datagram.get(..length).ok_or(DecodeError::Truncated("a message"))?;
        replies.push(reply(message)?);
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(replies)
}

fn reply(message: &[u8]) -> Result<Reply<'_>, DecodeError> {
    let kind = u16_at(message, 4, "a message's type")?;
    let flags = u16_at(message, 6, "a message's flags")?;
    let sequence = u32_at(message, 8, "a message's sequence number")?;
    let payload = message.get(HEADER_LEN..).ok_or(DecodeError::Truncated("a message's header"))?;
    let body = match kind {
        _ if flags & DUMP_INTERRUPTED != 0 => Body::Interrupted,
        TYPE_ERROR | TYPE_DONE => Body::End(error_number(payload)?),
        _ => Body::Data(payload.get(INNER_HEADER_LEN..).ok_or(DecodeError::Truncated("an inner header"))?),
    };
    Ok(Reply { sequence, body })
}

/// The kernel writes errors as negative numbers down to -4095 (MAX_ERRNO of `<linux/err.h>`).
fn error_number(payload: &[u8]) -> Result<i32, DecodeError> {
    let number = u32_at(payload, 0, "an acknowledgement")?.cast_signed();
    number.checked_neg().filter(|n| (0..4096).contains(n)).ok_or(DecodeError::Value("error number"))
}

/// The attributes of a message or of a nested attribute; those that kvip does not know stay unread.
pub(crate) struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    /// Splits `bytes` into attributes.
    pub(crate) fn parse(mut bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let length = usize::from(u16_at(bytes, 0, "an attribute's length")?);
            let kind = u16_at(bytes, 2, "an attribute's type")? & KIND_MASK;
            let value = bytes.get(ATTRIBUTE_HEADER_LEN..length);
            all.push((kind, value.ok_or(DecodeError::Truncated("an attribute"))?));
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(Self(all))
    }

    /// The value of the attribute `kind`, when it is there.
    pub(crate) fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.iter().find(|(k, _)| *k == kind).map(|(_, value)| *value)
    }

    /// The value of the attribute `kind`, which must be there.
    pub(crate) fn get(&self, kind: u16, name: &'static str) -> Result<&'a [u8], DecodeError> {
        self.find(kind).ok_or(DecodeError::Missing(name))
    }

    /// The attributes nested in `kind`, which must be there.
    pub(crate) fn nested(&self, kind: u16, name: &'static str) -> Result<Self, DecodeError> {
        Self::parse(self.get(kind, name)?)
    }

    /// A number in host order.
    pub(crate) fn u16(&self, kind: u16, name: &'static str) -> Result<u16, DecodeError> {
        u16_at(self.get(kind, name)?, 0, name)
    }

    /// A number in network order.
    pub(crate) fn be16(&self, kind: u16, name: &'static str) -> Result<u16, DecodeError> {
        Ok(u16::from_be(self.u16(kind, name)?))
    }

    /// A number in host order.
    pub(crate) fn u32(&self, kind: u16, name: &'static str) -> Result<u32, DecodeError> {
        u32_at(self.get(kind, name)?, 0, name)
    }

    /// A number in network order.
    pub(crate) fn be32(&self, kind: u16, name: &'static str) -> Result<u32, DecodeError> {
        Ok(u32::from_be(self.u32(kind, name)?))
    }

    /// A NUL-terminated string.
    pub(crate) fn str(&self, kind: u16, name: &'static str) -> Result<&'a str, DecodeError> {
        let bytes = self.get(kind, name)?;
        let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
        std::str::from_utf8(text).map_err(|_| DecodeError::Value(name))
    }
}

impl fmt::Debug for Attributes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().copied()).finish()
    }
}

fn u16_at(bytes: &[u8], at: usize, name: &'static str) -> Result<u16, DecodeError> {
    array_at(bytes, at, name).map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize, name: &'static str) -> Result<u32, DecodeError> {
    array_at(bytes, at, name).map(u32::from_ne_bytes)
}

fn array_at<const N: usize>(bytes: &[u8], at: usize, name: &'static str) -> Result<[u8; N], DecodeError> {
    bytes.get(at..at + N).and_then(|slice| slice.try_into().ok()).ok_or(DecodeError::Truncated(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_of_zero_ends_instead_of_looping() {
        assert_eq!(replies(&[0; 32]), Err(DecodeError::Truncated("a message's type")));
        assert_eq!(Attributes::parse(&[0; 8]).err(), Some(DecodeError::Truncated("an attribute")));
    }

    #[test]
    fn an_end_carries_the_error_number() {
        let check = |raw: i32, expected| {
            let bytes = [20, 2, 7, 0, raw.cast_unsigned()].map(u32::to_ne_bytes).concat();
            let ends = replies(&bytes).map(|replies| replies[0].body == Body::End(expected));
            assert_eq!(ends.is_ok_and(|same| same), expected >= 0, "{raw}");
        };
        check(0, 0);
        check(-17, 17);
        check(1, -1);
        check(-4096, -1);
        check(i32::MIN, -1);
    }

    #[test]
    fn the_last_attribute_may_lack_its_padding() {
        let read = Attributes::parse(&[5, 0, 9, 0, 7]).unwrap();
        assert_eq!(read.find(9), Some(&[7][..]));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(values in prop::collection::vec((0u16..0x3fff, prop::collection::vec(any::<u8>(), 0..40)), 0..8)) {
            let mut writer = Writer::generic(27, ACK, 5, 1, 1);
            writer.nest(3, |writer| values.iter().for_each(|(kind, value)| writer.put(*kind, value)));
            let bytes = writer.finish();
            let replies = replies(&bytes).unwrap();
            let Body::Data(payload) = replies[0].body else { panic!("{replies:?}") };
            let read = Attributes::parse(payload).unwrap().nested(3, "nest").unwrap();
            let expected: Vec<_> = values.iter().map(|(k, v)| (*k, v.as_slice())).collect();
            prop_assert_eq!(read.0, expected);
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = replies(&bytes);
            let _ = Attributes::parse(&bytes);
        }
    }
}
