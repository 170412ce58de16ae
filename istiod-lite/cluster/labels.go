package cluster

import (
	"slices"
	"strings"
	"unique"
)

// Label is one label. Both strings are interned: the pods of a mesh share few of them.
type Label struct{ name, value unique.Handle[string] }

// Name returns the label's key.
func (l Label) Name() string { return l.name.Value() }

// Value returns the label's value.
func (l Label) Value() string { return l.value.Value() }

// Labels is a set of labels, sorted by name. As a selector it asks for each of them.
type Labels []Label

// LabelsOf makes Labels of a map.
func LabelsOf(m map[string]string) Labels {
	if len(m) == 0 {
		return nil
	}
	ls := make(Labels, 0, len(m))
	for k, v := range m {
		ls = append(ls, Label{unique.Make(k), unique.Make(v)})
	}
	slices.SortFunc(ls, func(a, b Label) int { return strings.Compare(a.Name(), b.Name()) })
	return ls
}

// Get returns the value of a label, "" if there is none.
func (ls Labels) Get(name string) string {
	for _, l := range ls {
		if l.Name() == name {
			return l.Value()
		}
	}
	return ""
}

// Has reports whether there is a label of that name. With Lookup it lets selectors of Kubernetes match.
func (ls Labels) Has(name string) bool {
	_, ok := ls.Lookup(name)
	return ok
}

// Lookup returns the value of a label, and whether it is there.
func (ls Labels) Lookup(name string) (string, bool) {
	for _, l := range ls {
		if l.Name() == name {
			return l.Value(), true
		}
	}
	return "", false
}

// First returns the first value that is not empty of several labels.
func (ls Labels) First(names ...string) string {
	for _, n := range names {
		if v := ls.Get(n); v != "" {
			return v
		}
	}
	return ""
}

// Contains reports whether ls has every label of selector.
func (ls Labels) Contains(selector Labels) bool {
	for _, s := range selector {
		if !slices.Contains(ls, s) {
			return false
		}
	}
	return true
}

// Equal reports whether both have the same labels.
func (ls Labels) Equal(o Labels) bool { return slices.Equal(ls, o) }
