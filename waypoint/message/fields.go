package message

import (
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/mesh/h2"
)

// Field is one field of a header or trailer: Name in lower case, Value without white space around it. It is HTTP/2's own, so
// that lists go from one HTTP/2 connection to another as they are. Whoever makes one sees to it that Name is a token in lower
// case and that Value has no control characters: ValidName and ValidValue tell.
type Field = h2.Field

// Fields is a header or trailer in the order of the wire. Names compare as they are: callers pass them in lower case. The
// zero value is an empty list. It must not be changed by two goroutines at once.
type Fields []Field

// Get returns the value of the first field of that name, "" if there is none.
func (f Fields) Get(name string) string {
	v, _ := f.Lookup(name)
	return v
}

// Lookup returns the value of the first field of that name, and whether there is one.
func (f Fields) Lookup(name string) (string, bool) {
	for i := range f {
		if f[i].Name == name {
			return f[i].Value, true
		}
	}
	return "", false
}

// Has tells whether there is a field of that name.
func (f Fields) Has(name string) bool {
	_, ok := f.Lookup(name)
	return ok
}

// Joined returns the values of all fields of that name, joined by "," (RFC 9110 section 5.3), and whether there is one. It
// allocates only if there are several.
func (f Fields) Joined(name string) (string, bool) {
	first := -1
	var all []string
	for i := range f {
		switch {
		case f[i].Name != name:
		case first < 0:
			first = i
		default:
			if all == nil {
				all = append(all, f[first].Value)
			}
			all = append(all, f[i].Value)
		}
	}
	switch {
	case first < 0:
		return "", false
	case all == nil:
		return f[first].Value, true
	}
	return strings.Join(all, ","), true
}

// Values returns the values of all fields of that name, in order.
func (f Fields) Values(name string) []string {
	var all []string
	for i := range f {
		if f[i].Name == name {
			all = append(all, f[i].Value)
		}
	}
	return all
}

// Set makes value the only one of that name. It takes the place of the first that there was.
func (f *Fields) Set(name, value string) {
	for i := range *f {
		if (*f)[i].Name == name {
			(*f)[i] = Field{Name: name, Value: value}
			rest := (*f)[i+1:]
			kept := slices.DeleteFunc(rest, func(x Field) bool { return x.Name == name })
			*f = (*f)[:i+1+len(kept)]
			return
		}
	}
	f.Add(name, value)
}

// Add appends a field.
func (f *Fields) Add(name, value string) { *f = append(*f, Field{Name: name, Value: value}) }

// Del removes all fields of that name.
func (f *Fields) Del(name string) {
	if f.Has(name) {
		*f = slices.DeleteFunc(*f, func(x Field) bool { return x.Name == name })
	}
}

// Clone returns a copy that shares nothing that can change.
func (f Fields) Clone() Fields { return slices.Clone(f) }
