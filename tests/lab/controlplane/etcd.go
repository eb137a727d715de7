package main

import (
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/embed"
)

// etcdCommand serves an etcd on loopback. It never syncs to disk: a lab's data may die with its machine.
func etcdCommand() *cobra.Command {
	var data string
	command := &cobra.Command{Use: "etcd", RunE: func(*cobra.Command, []string) error { return runEtcd(data) }}
	command.Flags().StringVar(&data, "data-dir", "", "where the data is")
	return command
}

func runEtcd(data string) error {
	config := embed.NewConfig()
	config.Dir = data
	config.UnsafeNoFsync = true
	config.LogLevel = "warn"
	client, peer := url.URL{Scheme: "http", Host: "127.0.0.1:2379"}, url.URL{Scheme: "http", Host: "127.0.0.1:2380"}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	server, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	defer server.Close()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	select {
	case <-stop:
		return nil
	case err := <-server.Err():
		return err
	}
}
