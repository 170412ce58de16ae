package directory

import "slices"

// chunkSize is the most elements that a change of a vec copies, besides one slice header for each chunk.
const chunkSize = 128

// vec is an immutable list with access by index. A change makes a new vec, which shares all but one or two chunks with the old
// one. The zero vec is empty. Every chunk but the last is full.
type vec[T any] struct {
	n      int
	chunks [][]T
}

// vecOf takes over a list.
func vecOf[T any](list []T) vec[T] {
	return vec[T]{len(list), slices.Collect(slices.Chunk(list, chunkSize))}
}

func (v vec[T]) at(i int) T { return v.chunks[i/chunkSize][i%chunkSize] }

func (v vec[T]) set(i int, x T) vec[T] {
	chunks := slices.Clone(v.chunks)
	chunks[i/chunkSize] = slices.Clone(chunks[i/chunkSize])
	chunks[i/chunkSize][i%chunkSize] = x
	return vec[T]{v.n, chunks}
}

func (v vec[T]) push(x T) vec[T] {
	chunks := make([][]T, len(v.chunks), len(v.chunks)+1)
	copy(chunks, v.chunks)
	if v.n%chunkSize == 0 {
		return vec[T]{v.n + 1, append(chunks, []T{x})}
	}
	last := chunks[len(chunks)-1]
	grown := make([]T, len(last)+1)
	copy(grown, last)
	grown[len(last)] = x
	chunks[len(chunks)-1] = grown
	return vec[T]{v.n + 1, chunks}
}

func (v vec[T]) pop() vec[T] {
	last := len(v.chunks) - 1
	chunks := slices.Clone(v.chunks)
	if len(chunks[last]) == 1 {
		return vec[T]{v.n - 1, chunks[:last:last]}
	}
	chunks[last] = slices.Clone(chunks[last][:len(chunks[last])-1])
	return vec[T]{v.n - 1, chunks}
}

// smallMembers is the size up to which members are searched one by one; most services are that small, and a map would
// cost them more memory than all else.
const smallMembers = 32

// members is a vec of workloads in which one can be replaced or removed by its uid. The vec may be read by others; the
// rest belongs to whoever changes it.
type members struct {
	list vec[*Workload]
	pos  map[string]int // where each is, once there are more than smallMembers
}

// membersOf takes over a list of workloads with different uids.
func membersOf(list []*Workload) members {
	m := members{list: vecOf(list)}
	if len(list) > smallMembers {
		m.index()
	}
	return m
}

func (m *members) index() {
	m.pos = make(map[string]int, m.list.n)
	for i := range m.list.n {
		m.pos[m.list.at(i).UID] = i
	}
}

// find returns where the workload with this uid is.
func (m *members) find(uid string) (int, bool) {
	if m.pos != nil {
		i, ok := m.pos[uid]
		return i, ok
	}
	for i := range m.list.n {
		if m.list.at(i).UID == uid {
			return i, true
		}
	}
	return 0, false
}

// put adds w, or replaces the one with its uid, which it returns.
func (m *members) put(w *Workload) (old *Workload) {
	if i, ok := m.find(w.UID); ok {
		old = m.list.at(i)
		m.list = m.list.set(i, w)
		return old
	}
	m.list = m.list.push(w)
	switch {
	case m.pos != nil:
		m.pos[w.UID] = m.list.n - 1
	case m.list.n > smallMembers:
		m.index()
	}
	return nil
}

// remove takes one out, and returns it; nil if it is not there. The last one gets its place.
func (m *members) remove(uid string) (old *Workload) {
	i, ok := m.find(uid)
	if !ok {
		return nil
	}
	old = m.list.at(i)
	delete(m.pos, uid)
	if last := m.list.n - 1; i != last {
		w := m.list.at(last)
		m.list = m.list.set(i, w)
		if m.pos != nil {
			m.pos[w.UID] = i
		}
	}
	if m.list = m.list.pop(); m.list.n <= smallMembers/2 {
		m.pos = nil
	}
	return old
}
