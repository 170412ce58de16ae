//go:build ambit_parts

// Command etcd is the etcd server, as its own module ships it.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
