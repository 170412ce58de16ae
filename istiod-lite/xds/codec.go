package xds

import (
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/ambit-mesh/ambit/istiod-lite/resource"
)

// Field numbers of envoy.service.discovery.v3.DeltaDiscoveryResponse, besides resources.
const (
	fieldSystemVersion    = 1
	fieldTypeURL          = 4
	fieldNonce            = 5
	fieldRemovedResources = 6
)

// response is a DeltaDiscoveryResponse whose resources are encoded already. Its encoding refers to their bytes, so that a
// snapshot of the whole mesh to any number of proxies is never copied together in memory.
type response struct {
	typ       resource.Type
	nonce     string
	version   string
	resources []*resource.Resource
	removed   []string
}

// size is the number of bytes of the resources' encoding.
func (r *response) size() int {
	n := 0
	for _, res := range r.resources {
		n += len(res.Framed)
	}
	return n
}

func (r *response) encode() mem.BufferSlice {
	out := make(mem.BufferSlice, 0, len(r.resources)+1)
	for _, res := range r.resources {
		out = append(out, mem.SliceBuffer(res.Framed))
	}
	var rest []byte
	appendString := func(field protowire.Number, s string) {
		rest = protowire.AppendTag(rest, field, protowire.BytesType)
		rest = protowire.AppendString(rest, s)
	}
	appendString(fieldSystemVersion, r.version)
	appendString(fieldTypeURL, r.typ.URL())
	appendString(fieldNonce, r.nonce)
	for _, name := range r.removed {
		appendString(fieldRemovedResources, name)
	}
	return append(out, mem.SliceBuffer(rest))
}

// codec is gRPC's protobuf codec that knows response besides.
type codec struct{ encoding.CodecV2 }

// Codec returns the codec that a server needs which serves a Hub's streams.
func Codec() encoding.CodecV2 { return codec{encoding.GetCodecV2(proto.Name)} }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if r, ok := v.(*response); ok {
		return r.encode(), nil
	}
	return c.CodecV2.Marshal(v)
}
