// Package api holds the contracts that ambit's parts share with each other, with users and with Istio ambient's parts:
// labels, ports, marks, paths and names. The folders below it hold the protobuf contracts and their generated code. It
// imports nothing of ours and has no behaviour: whatever is here is a promise to somebody outside.
package api
