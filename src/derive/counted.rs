//! A set that remembers how often each of its members was put in, so that what one Service adds can be taken out again.

use imbl::OrdMap;

/// A multiset, cheap to copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted<T: Ord + Clone>(OrdMap<T, usize>);

impl<T: Ord + Clone> Default for Counted<T> {
    fn default() -> Self {
        Self(OrdMap::new())
    }
}

impl<T: Ord + Clone> Counted<T> {
    /// Puts `member` in once more; true when it was not there.
    pub fn add(&mut self, member: T) -> bool {
        let count = self.0.entry(member).or_insert(0);
        *count += 1;
        *count == 1
    }

    /// Takes `member` out once; true when it is gone by that.
    pub fn remove(&mut self, member: &T) -> bool {
        match self.0.get_mut(member) {
            Some(count) if *count > 1 => {
                *count -= 1;
                false
            }
            Some(_) => self.0.remove(member).is_some(),
            None => false,
        }
    }

    /// Whether `member` is there.
    pub fn contains(&self, member: &T) -> bool {
        self.0.contains_key(member)
    }

    /// Each member once, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.keys()
    }

    /// Each member with how often it was put in.
    pub fn counts(&self) -> &OrdMap<T, usize> {
        &self.0
    }

    /// How many different members there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Ord + Clone> FromIterator<T> for Counted<T> {
    fn from_iter<I: IntoIterator<Item = T>>(members: I) -> Self {
        let mut all = Self::default();
        all.extend(members);
        all
    }
}

impl<T: Ord + Clone> Extend<T> for Counted<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, members: I) {
        for member in members {
            self.add(member);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_stays_until_it_was_taken_out_as_often_as_put_in() {
        let mut all: Counted<u8> = [1, 2, 2].into_iter().collect();
        assert!(!all.remove(&2) && all.remove(&2) && !all.remove(&2));
        assert!(all.add(3) && !all.add(3));
        assert_eq!(all.iter().collect::<Vec<_>>(), [&1, &3]);
    }
}
