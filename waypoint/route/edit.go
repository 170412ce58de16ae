package route

import "github.com/ambit-mesh/ambit/waypoint/message"

// edits are changes of a header, in order.
type edits []edit

// edit is one change of a header.
type edit struct {
	do          how
	name, value string
}

type how uint8

const (
	remove how = iota
	overwrite
	appendField
	addIfAbsent
	overwriteIfPresent
)

// apply makes the changes. It allocates only if the header grows beyond its capacity.
func (e edits) apply(h *message.Fields) {
	for i := range e {
		c := &e[i]
		switch c.do {
		case remove:
			h.Del(c.name)
		case overwrite:
			h.Set(c.name, c.value)
		case appendField:
			h.Add(c.name, c.value)
		case addIfAbsent:
			if !h.Has(c.name) {
				h.Add(c.name, c.value)
			}
		case overwriteIfPresent:
			if h.Has(c.name) {
				h.Set(c.name, c.value)
			}
		}
	}
}
