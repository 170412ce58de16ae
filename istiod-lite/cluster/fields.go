package cluster

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// readTable names the fields of messages of Istio's that are read, by message without its package.
type readTable map[string]string

// fields reads an object of Istio's and gathers what is wrong with it, or not supported, by field.
type fields struct{ faults []string }

func (f *fields) add(at, format string, args ...any) {
	f.faults = append(f.faults, at+": "+fmt.Sprintf(format, args...))
}

// read decodes spec and reports what in it is not in the table. It returns false if nothing could be decoded.
func (f *fields) read(in *unstructured.Unstructured, into proto.Message, known readTable) bool {
	spec, err := json.Marshal(durations(in.Object["spec"], into.ProtoReflect().Descriptor()))
	if err != nil {
		f.faults = append(f.faults, "spec: "+err.Error())
		return false
	}
	if strict := decode(spec, into, protojson.UnmarshalOptions{}); len(strict) > 0 {
		// Perhaps it is only something that is newer than this release.
		proto.Reset(into)
		f.faults = append(f.faults, strict...)
		if len(decode(spec, into, protojson.UnmarshalOptions{DiscardUnknown: true})) > 0 {
			return false
		}
	}
	f.unread("spec", into.ProtoReflect(), known)
	return true
}

// durations writes durations as protobuf has them, which knows seconds only: Istio takes Go's too, and people write 5m.
func durations(v any, d protoreflect.MessageDescriptor) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, value := range v {
			out[name] = value
			field := d.Fields().ByJSONName(name)
			if field == nil {
				field = d.Fields().ByTextName(name)
			}
			if field != nil && field.Message() != nil && !field.IsMap() {
				out[name] = durations(value, field.Message())
			}
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = durations(v[i], d)
		}
		return out
	case string:
		if d.FullName() != "google.protobuf.Duration" {
			return v
		}
		if parsed, err := time.ParseDuration(v); err == nil {
			return strconv.FormatFloat(parsed.Seconds(), 'f', -1, 64) + "s"
		}
	}
	return v
}

// istioPackages are those of messages that are looked into; others are values.
const istioPackages = "istio."

// unread reports the fields that are set and not in the table.
func (f *fields) unread(at string, m protoreflect.Message, known readTable) {
	d := m.Descriptor()
	name := strings.TrimPrefix(string(d.FullName()), string(d.ParentFile().Package())+".")
	names := strings.Fields(known[name])
	var found []protoreflect.FieldDescriptor
	m.Range(func(d protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		found = append(found, d)
		return true
	})
	slices.SortFunc(found, func(a, b protoreflect.FieldDescriptor) int { return int(a.Number() - b.Number()) })
	for _, d := range found {
		at := at + "." + d.JSONName()
		inside := d.Message() != nil && strings.HasPrefix(string(d.Message().FullName()), istioPackages)
		switch {
		case !slices.Contains(names, string(d.Name())):
			f.faults = append(f.faults, at+" is not supported")
		case !inside || d.IsMap():
		case known[strings.TrimPrefix(string(d.Message().FullName()), string(d.Message().ParentFile().Package())+".")] == "":
			// looked at as a whole
		case d.IsList():
			for i := range m.Get(d).List().Len() {
				f.unread(fmt.Sprintf("%s[%d]", at, i), m.Get(d).List().Get(i).Message(), known)
			}
		default:
			f.unread(at, m.Get(d).Message(), known)
		}
	}
}

// duration reads a duration that is not negative; 0 if it is not there.
func (f *fields) duration(at string, in *durationpb.Duration) time.Duration {
	if in == nil {
		return 0
	}
	if in.CheckValid() != nil || in.AsDuration() < 0 {
		f.add(at, "a duration that is not negative, not %ds", in.GetSeconds())
		return 0
	}
	return in.AsDuration()
}

// count reads a number that is not negative.
func (f *fields) count(at string, n int32) uint32 {
	if n < 0 {
		f.add(at, "0 to %d, not %d", math.MaxInt32, n)
	}
	return uint32(max(n, 0))
}

// percent reads a percentage.
func (f *fields) percent(at string, n int32) uint32 {
	if n < 0 || n > 100 {
		f.add(at, "0 to 100, not %d", n)
	}
	return uint32(min(max(n, 0), 100))
}
