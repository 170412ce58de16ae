package config

import (
	"bytes"
	"encoding/json"
	"iter"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
)

// dumpShape is how one type of resources is laid out in envoy.admin.v3.ConfigDump.
type dumpShape struct {
	message, list, resource string
	// nested: the resource is within an active_state, and its name beside it.
	nested bool
}

// dumpShapes are those of the kinds, in the order in which Envoy dumps them.
var dumpShapes = [kindCount]dumpShape{
	kindCluster:   {message: "ClustersConfigDump", list: "dynamic_active_clusters", resource: "cluster"},
	kindEndpoints: {message: "EndpointsConfigDump", list: "dynamic_endpoint_configs", resource: "endpoint_config"},
	kindListener:  {message: "ListenersConfigDump", list: "dynamic_listeners", resource: "listener", nested: true},
	kindRoutes:    {message: "RoutesConfigDump", list: "dynamic_route_configs", resource: "route_config"},
}

// Dump returns the elements of "configs" in Envoy's /config_dump?include_eds, one for each type of resources, to be written as
// JSON: each resource as it is in force, and beside it the last one that was rejected, with the reason. No lock is held between
// elements.
func (s *Store) Dump() iter.Seq[any] {
	return func(yield func(any) bool) {
		for k, shape := range dumpShapes {
			if !yield(map[string]any{"@type": "type.googleapis.com/envoy.admin.v3." + shape.message, shape.list: s.entries(kind(k), shape)}) {
				return
			}
		}
	}
}

// entries are all resources of a type.
func (s *Store) entries(k kind, shape dumpShape) []map[string]any {
	s.mu.Lock()
	list := make([]dumped, 0, len(s.kinds[k]))
	for _, name := range sortedKeys(s.kinds[k]) {
		list = append(list, dumped{name, *s.kinds[k][name]})
	}
	s.mu.Unlock()
	entries := make([]map[string]any, 0, len(list))
	for _, d := range list {
		entries = append(entries, d.entry(shape))
	}
	return entries
}

// dumped is one resource of a dump.
type dumped struct {
	name string
	resource
}

// entry is the resource as JSON has it.
func (d dumped) entry(shape dumpShape) map[string]any {
	state := map[string]any{}
	if d.any != nil {
		state["version_info"] = d.version
		state["last_updated"] = d.updated.UTC().Format(time.RFC3339Nano)
		state[shape.resource] = packed(d.any)
	}
	entry := state
	if shape.nested {
		entry = map[string]any{"name": d.name}
		if len(state) > 0 {
			entry["active_state"] = state
		}
	}
	entry["client_status"] = "ACKED"
	if d.partly != nil {
		d.cause, d.refusedVersion, d.refusedAt = d.partly, d.version, d.updated
	}
	if d.cause != nil {
		entry["client_status"] = "NACKED"
		failed := map[string]any{
			"version_info": d.refusedVersion, "last_update_attempt": d.refusedAt.UTC().Format(time.RFC3339Nano), "details": d.name + ": " + d.cause.Error(),
		}
		if d.refused != nil {
			failed["failed_configuration"] = packed(d.refused)
		}
		entry["error_state"] = failed
	}
	return entry
}

// packed is a resource as JSON has it, with names of fields as in the schema; one that cannot be read is shown as its bytes.
func packed(a *anypb.Any) json.RawMessage {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(a)
	if err == nil {
		var b bytes.Buffer
		if json.Compact(&b, text) == nil { // protojson varies its white space
			return b.Bytes()
		}
	}
	text, _ = json.Marshal(map[string]any{"@type": a.GetTypeUrl(), "value": a.GetValue()})
	return text
}
