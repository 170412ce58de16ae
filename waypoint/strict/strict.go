// Package strict finds what a protobuf message asks for beyond what its reader understands. It walks every field that is
// set, by reflection, against a table of those that are understood, and names each other one by its full path; so a field
// that a newer control plane begins to set is refused by name and never ignored. It knows no message itself.
package strict

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
)

// maxProblems bounds how many problems of one resource are spelt out.
const maxProblems = 10

// Table says which fields are understood, by the full name of their message. In a message that it does not have, none is.
// Messages of google.protobuf are values: they are not walked.
type Table map[protoreflect.FullName]Fields

// Fields are those of one message that are understood: true for those that the reader honours, false for those that it may
// leave aside, since they change nothing of what a request meets (names for statistics, for example).
type Fields map[protoreflect.Name]bool

// Known makes Fields of two lists of names, separated by white space: what is honoured, and what is left aside.
func Known(honoured, aside string) Fields {
	f := Fields{}
	for _, name := range strings.Fields(honoured) {
		f[protoreflect.Name(name)] = true
	}
	for _, name := range strings.Fields(aside) {
		f[protoreflect.Name(name)] = false
	}
	return f
}

// Check reports every field that is set in m, or below it, and not in the table. What an Any holds is not looked into: use
// Unpack.
func (t Table) Check(m proto.Message, at *Path, r *Report) { t.check(m.ProtoReflect(), at, r) }

func (t Table) check(m protoreflect.Message, at *Path, r *Report) {
	name := m.Descriptor().FullName()
	if isValue(name) {
		return
	}
	if n := unknownNumber(m.GetUnknown()); n != 0 {
		r.Add(at, "field number %d of %s is newer than this waypoint: leave it out, or upgrade the waypoint", n, name)
	}
	known := t[name]
	var fields []protoreflect.FieldDescriptor // in the order of the schema, so that reports are the same every time
	m.Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if _, ok := known[fd.Name()]; !ok || fd.Message() != nil {
			fields = append(fields, fd)
		}
		return true
	})
	if len(fields) > 1 {
		slices.SortFunc(fields, func(a, b protoreflect.FieldDescriptor) int { return cmp.Compare(a.Index(), b.Index()) })
	}
	for _, fd := range fields {
		if _, ok := known[fd.Name()]; !ok {
			r.Add(at.Field(string(fd.Name())), "not supported: leave it out")
			continue
		}
		t.descend(m.Get(fd), fd, at.Field(string(fd.Name())), r)
	}
}

// isValue tells whether messages of a type are values, which have no fields of their own to understand.
func isValue(name protoreflect.FullName) bool {
	return strings.HasPrefix(string(name), "google.protobuf.")
}

func (t Table) descend(v protoreflect.Value, fd protoreflect.FieldDescriptor, at *Path, r *Report) {
	switch {
	case fd.IsMap():
		if fd.MapValue().Message() == nil || isValue(fd.MapValue().Message().FullName()) {
			return
		}
		var keys []protoreflect.MapKey
		v.Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
			keys = append(keys, k)
			return true
		})
		slices.SortFunc(keys, func(a, b protoreflect.MapKey) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			t.check(v.Map().Get(k).Message(), at.Key(k.String()), r)
		}
	case fd.IsList():
		if isValue(fd.Message().FullName()) {
			return
		}
		for i := range v.List().Len() {
			t.check(v.List().Get(i).Message(), at.Index(i), r)
		}
	default:
		t.check(v.Message(), at, r)
	}
}

// With returns a table with the messages of both; those of more take the place of t's.
func (t Table) With(more Table) Table {
	out := maps.Clone(t)
	maps.Copy(out, more)
	return out
}

// Verify returns an error for each message or field of the table that no schema in the program has.
func (t Table) Verify() error {
	var all []error
	for name, fields := range t {
		mt, err := protoregistry.GlobalTypes.FindMessageByName(name)
		if err != nil {
			all = append(all, fmt.Errorf("%s: %w", name, err))
			continue
		}
		for field := range fields {
			if mt.Descriptor().Fields().ByName(field) == nil {
				all = append(all, fmt.Errorf("%s has no field %s", name, field))
			}
		}
	}
	return errors.Join(all...)
}

// Aside names the fields that are left aside, a line for each message that has any, sorted, as documentation lists them.
func (t Table) Aside() []string {
	var lines []string
	for message, fields := range t {
		var names []string
		for name, honoured := range fields {
			if !honoured {
				names = append(names, "`"+string(name)+"`")
			}
		}
		if len(names) > 0 {
			slices.Sort(names)
			lines = append(lines, "- `"+string(message)+"`: "+strings.Join(names, ", "))
		}
	}
	slices.Sort(lines)
	return lines
}

// unknownNumber returns the number of the first field in raw, which is what the schema does not have; 0 if there is none.
func unknownNumber(raw protoreflect.RawFields) uint64 {
	var tag uint64
	for i, b := range raw {
		tag |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 || i == 9 {
			break
		}
	}
	return tag >> 3
}

// Unpack reads a, which must hold a message of into's type, into it, and checks it. It reports whether into can be used,
// which it can if only fields that the table does not have were reported.
func (t Table) Unpack(a *anypb.Any, into proto.Message, at *Path, r *Report) bool {
	want := into.ProtoReflect().Descriptor().FullName()
	if a == nil {
		r.Add(at, "required: %s", want)
		return false
	}
	if a.MessageName() != want {
		r.Add(at, "%s is not supported here: it must be %s", a.MessageName(), want)
		return false
	}
	if err := proto.Unmarshal(a.GetValue(), into); err != nil {
		r.Add(at, "is no %s: %v", want, err)
		return false
	}
	t.Check(into, at, r)
	return true
}

// Path is the way from a resource to one of its fields; nil is the resource. Paths are immutable, share their beginnings, and are
// spelt out only by String.
type Path struct {
	parent *Path
	kind   step
	name   string // of a field or key
	index  int
}

// step is how the last part of a path leads on.
type step uint8

const (
	stepField step = iota
	stepIndex
	stepKey
)

// Field is the path to a field of the message at p.
func (p *Path) Field(name string) *Path { return &Path{parent: p, kind: stepField, name: name} }

// Index is the path to the i-th element of the list at p.
func (p *Path) Index(i int) *Path { return &Path{parent: p, kind: stepIndex, index: i} }

// Key is the path to the element of the map at p that has this key.
func (p *Path) Key(k string) *Path { return &Path{parent: p, kind: stepKey, name: k} }

func (p *Path) String() string {
	if p == nil {
		return ""
	}
	before := p.parent.String()
	switch {
	case p.kind == stepIndex:
		return before + "[" + strconv.Itoa(p.index) + "]"
	case p.kind == stepKey:
		return before + "[" + strconv.Quote(p.name) + "]"
	case p.parent == nil:
		return p.name
	}
	return before + "." + p.name
}

// Problem is one thing in a resource that cannot be honoured.
type Problem struct {
	// Path of the field from the resource, as "virtual_hosts[0].routes[3].match.tls_context"; empty for the resource itself.
	Path string
	// What is wrong, and what to do.
	What string
}

func (p Problem) Error() string {
	if p.Path == "" {
		return p.What
	}
	return p.Path + ": " + p.What
}

// Report collects the problems of one resource. The zero value is an empty one.
type Report struct{ problems []Problem }

// Add adds a problem of the field at p.
func (r *Report) Add(p *Path, format string, args ...any) {
	r.problems = append(r.problems, Problem{Path: p.String(), What: fmt.Sprintf(format, args...)})
}

// Below tells whether there is a problem at p or below it.
func (r *Report) Below(p *Path) bool {
	if len(r.problems) == 0 {
		return false
	}
	prefix := p.String()
	return slices.ContainsFunc(r.problems, func(one Problem) bool {
		rest, ok := strings.CutPrefix(one.Path, prefix)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[' || prefix == "")
	})
}

// Empty tells whether there is no problem.
func (r *Report) Empty() bool { return len(r.problems) == 0 }

// Problems returns all, in the order in which they were found.
func (r *Report) Problems() []Problem { return r.problems }

// Err returns all problems as one error, which spells out the first ten; nil if there is none.
func (r *Report) Err() error {
	if len(r.problems) == 0 {
		return nil
	}
	return problems(r.problems)
}

type problems []Problem

func (p problems) Error() string {
	var b strings.Builder
	for i, one := range p[:min(len(p), maxProblems)] {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(one.Error())
	}
	if more := len(p) - maxProblems; more > 0 {
		fmt.Fprintf(&b, "; %d more", more)
	}
	return b.String()
}

// Unwrap gives errors.As each Problem.
func (p problems) Unwrap() []error {
	all := make([]error, len(p))
	for i, one := range p {
		all[i] = one
	}
	return all
}
