package config

import (
	"hash/maphash"
	"iter"
	"maps"
)

// shardCount is how many parts a table has. A change copies one of them, and the list of them.
const shardCount = 256

// table is an immutable map by name, of which changed copies cost little and share what did not change. The zero value is
// empty.
type table[V comparable] struct {
	seed   maphash.Seed
	shards *[shardCount]*map[string]V // nil if empty
	size   int
}

func (t table[V]) get(name string) (V, bool) {
	if t.shards == nil {
		var none V
		return none, false
	}
	m := t.shards[maphash.String(t.seed, name)%shardCount]
	if m == nil {
		var none V
		return none, false
	}
	v, ok := (*m)[name]
	return v, ok
}

// with returns a copy with other values of some names; the zero value of V takes a name out.
func (t table[V]) with(changes map[string]V) table[V] {
	if len(changes) == 0 {
		return t
	}
	next := table[V]{seed: t.seed, shards: new([shardCount]*map[string]V), size: t.size}
	if t.shards == nil {
		next.seed = maphash.MakeSeed()
	} else {
		*next.shards = *t.shards
	}
	var none V
	own := [shardCount]bool{} // shards that are next's alone
	for name, v := range changes {
		i := maphash.String(next.seed, name) % shardCount
		if !own[i] {
			own[i] = true
			m := map[string]V{}
			if old := next.shards[i]; old != nil {
				m = maps.Clone(*old)
			}
			next.shards[i] = &m
		}
		m := *next.shards[i]
		if _, had := m[name]; had {
			next.size--
		}
		if v == none {
			delete(m, name)
			continue
		}
		m[name] = v
		next.size++
	}
	return next
}

// all returns all values by name, in no order.
func (t table[V]) all() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		if t.shards == nil {
			return
		}
		for _, m := range t.shards {
			if m == nil {
				continue
			}
			for name, v := range *m {
				if !yield(name, v) {
					return
				}
			}
		}
	}
}

// changed returns what differs from an older version of the table: the zero value for what is gone.
func (t table[V]) changed(old table[V]) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		same := func(m, o *map[string]V) bool {
			if m != nil {
				for name, v := range *m {
					if before, had := old.get(name); (!had || before != v) && !yield(name, v) {
						return false
					}
				}
			}
			if o != nil {
				var none V
				for name := range *o {
					if _, has := t.get(name); !has && !yield(name, none) {
						return false
					}
				}
			}
			return true
		}
		for i := range shardCount {
			var m, o *map[string]V
			if t.shards != nil {
				m = t.shards[i]
			}
			if old.shards != nil {
				o = old.shards[i]
			}
			if (m != o || t.seed != old.seed) && !same(m, o) {
				return
			}
		}
	}
}
