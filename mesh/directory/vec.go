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

// members is a vec of workloads and where each is in it, so that one can be replaced or removed without a search. The vec
// may be read by others; the rest belongs to whoever changes it.
type members struct {
	list vec[*Workload]
	pos  map[string]int // by uid
}

func (m *members) put(w *Workload) {
	if i, ok := m.pos[w.UID]; ok {
		m.list = m.list.set(i, w)
		return
	}
	if m.pos == nil {
		m.pos = map[string]int{}
	}
	m.pos[w.UID] = m.list.n
	m.list = m.list.push(w)
}

// remove puts the last one into the place of the one that goes.
func (m *members) remove(uid string) {
	i, ok := m.pos[uid]
	if !ok {
		return
	}
	delete(m.pos, uid)
	if last := m.list.n - 1; i != last {
		w := m.list.at(last)
		m.list = m.list.set(i, w)
		m.pos[w.UID] = i
	}
	m.list = m.list.pop()
}
