package directory

import "sync/atomic"

// load is how busy this proxy keeps a workload.
type load struct{ connections atomic.Int32 }

// Hold counts a connection to w, open or being opened, which Pick weighs; Release must follow. Both may be called
// concurrently, and on nil.
func (w *Workload) Hold() {
	if w != nil && w.load != nil {
		w.load.connections.Add(1)
	}
}

// Release undoes one Hold.
func (w *Workload) Release() {
	if w != nil && w.load != nil {
		w.load.connections.Add(-1)
	}
}

// Held is how many connections are counted.
func (w *Workload) Held() int {
	if w == nil || w.load == nil {
		return 0
	}
	return int(w.load.connections.Load())
}

// busier tells whether w has more connections for its capacity than o.
func (w *Workload) busier(o *Workload) bool {
	return int64(w.Held())*int64(o.Capacity) > int64(o.Held())*int64(w.Capacity)
}
