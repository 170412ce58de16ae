package zds_test

import (
	"bytes"
	"encoding/hex"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	zdsapi "github.com/ambit-mesh/ambit/api/zds"
	"github.com/ambit-mesh/ambit/cni/zds"
)

// peerPacket is the add that a proxy which asks for nothing gets, as Istio ambient's agent would write it.
const peerPacket = "0a110a0375696412" + "0a" + "0a01701201731a0261" + "62"

// TestResolverIsForThoseWhoAsk: how a pod resolves names is told to a proxy whose hello asks for it; to others the packet is
// the one of the protocol, byte by byte, however much there is to tell.
func TestResolverIsForThoseWhoAsk(t *testing.T) {
	a := start(t, 0)
	r := &zdsapi.Resolver{Servers: []string{"10.96.0.10"}, Ndots: 5}
	for range 20 {
		r.Search = append(r.Search, strings.Repeat("long-domain.", 8)+"example")
	}
	if err := a.Set(zds.Pod{UID: "uid", Name: "p", Namespace: "s", ServiceAccount: "ab", NetNS: netns(t), Resolver: r}); err != nil {
		t.Fatal(err)
	}
	first := func(features ...zdsapi.Feature) []byte {
		t.Helper()
		c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: a.socket, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		hello, err := proto.Marshal(&zdsapi.ZdsHello{Version: zdsapi.Version_V1, Features: features})
		if err == nil {
			_, err = c.Write(hello)
		}
		if err == nil {
			err = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		}
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1<<16)
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return buf[:n]
	}
	want, err := hex.DecodeString(peerPacket)
	if err != nil {
		t.Fatal(err)
	}
	if got := first(); !bytes.Equal(got, want) {
		t.Errorf("a proxy that asks for nothing gets %x, want %x", got, want)
	}
	var m zdsapi.WorkloadRequest
	if err := proto.Unmarshal(first(zdsapi.Feature_RESOLVER), &m); err != nil {
		t.Fatal(err)
	}
	if got := m.GetAdd().GetWorkloadInfo().GetResolver(); !proto.Equal(got, r) {
		t.Errorf("a proxy that asks gets %v", got)
	}
}
