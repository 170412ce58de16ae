package inpod

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/zds"
)

// FuzzRequest reads any packet with any control message, as something that is not the agent may send it. What is accepted
// names its pod and has the descriptors that it needs; anything else breaks the protocol, and nothing more.
func FuzzRequest(f *testing.F) {
	for _, m := range []*zds.WorkloadRequest{
		{},
		{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{
			Uid: "u", WorkloadInfo: &zds.WorkloadInfo{Name: "n", Namespace: "ns", ServiceAccount: "sa"},
		}}},
		{Payload: &zds.WorkloadRequest_Keep{Keep: &zds.KeepWorkload{Uid: "u"}}},
		{Payload: &zds.WorkloadRequest_Del{Del: &zds.DelWorkload{Uid: "u"}}},
		{Payload: &zds.WorkloadRequest_SnapshotSent{SnapshotSent: &zds.SnapshotSent{}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, unix.UnixRights(7), uint8(0))
		f.Add(b, []byte(nil), uint8(0))
	}
	f.Add([]byte{}, unix.UnixRights(7, 8, 9), uint8(unix.MSG_TRUNC))
	f.Fuzz(func(t *testing.T, packet, oob []byte, flags uint8) {
		// The descriptors are nobody's: they must not be closed.
		fds, err := descriptors(oob)
		if err != nil {
			if !errors.Is(err, errProtocol) {
				t.Fatalf("control message: %v", err)
			}
			return
		}
		r := &request{fds: fds}
		if err := r.decode(packet, int(flags)); err != nil {
			if !errors.Is(err, errProtocol) {
				t.Fatalf("packet: %v", err)
			}
			return
		}
		add, isAdd := r.Payload.(*zds.WorkloadRequest_Add)
		if isAdd != (len(r.fds) == 1) || len(r.fds) > 1 {
			t.Errorf("%T was accepted with %d descriptors", r.Payload, len(r.fds))
		}
		if isAdd && (add.Add.GetUid() == "" || add.Add.GetWorkloadInfo().GetServiceAccount() == "") {
			t.Errorf("a pod without name was accepted: %v", add.Add)
		}
	})
}
